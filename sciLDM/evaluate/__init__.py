"""What becomes of scores: files in the run folder, and a report that can be read without us. Knows no domain."""

from sciLDM.evaluate.hooks import (
    ConditionalEvaluation,
    ConditionalSampling,
    Material,
    ReadsSamples,
    ReportsSections,
    ScoresConditions,
    Section,
)
from sciLDM.evaluate.report import write_report
from sciLDM.evaluate.store import Stored, record_command

__all__ = [
    "ConditionalEvaluation",
    "ConditionalSampling",
    "Material",
    "ReadsSamples",
    "ReportsSections",
    "ScoresConditions",
    "Section",
    "Stored",
    "record_command",
    "write_report",
]
