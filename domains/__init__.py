"""Adapters, one package a scientific domain: `sciLDM.domains.<name>`. They never import each other."""

__all__: list[str] = []
