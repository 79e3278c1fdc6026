"""Style sheet of the report."""

__all__ = ["CSS"]

CSS = """
:root{--bg:#fbfbfc;--card:#fff;--ink:#1b1f24;--soft:#57606a;--line:#e3e6ea;--grid:#e6e9ed;--axis:#9aa3ad;--link:#0061a8;
--warn:#fff6e5;--warnline:#e0a030;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b0558a;--c4:#56b4e9;--c5:#c98500}
@media (prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1c2026;--ink:#e6e9ed;--soft:#a0a9b4;--line:#30363d;
--grid:#2b3138;--axis:#6b7480;--link:#6cb8f0;--warn:#2e2716;--warnline:#b98a2c;--c0:#4aa8e0;--c1:#f08a4b;--c2:#3cc79d;
--c3:#dd9cc0;--c4:#7cc7f2;--c5:#edb445}.mol svg{filter:invert(.92) hue-rotate(180deg)}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);line-height:1.5;
font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',sans-serif}
header,main{max-width:1120px;margin:0 auto;padding:0 24px}
header{padding-top:40px}
h1{font-size:30px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:20px;margin:0 0 12px;letter-spacing:-.005em}
h3{font-size:15px;margin:20px 0 8px}
.subtitle{color:var(--soft);margin:0 0 20px}
p{max-width:75ch;margin:8px 0}
.soft{color:var(--soft);font-size:14px}
nav{display:flex;flex-wrap:wrap;gap:6px 18px;border-top:1px solid var(--line);margin-top:20px;padding:12px 0 4px;
font-size:14px}
a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:22px 24px;margin:18px 0}
main{padding-bottom:60px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:14px;width:100%}
th{text-align:left;color:var(--soft);font-weight:600;border-bottom:1px solid var(--axis);padding:6px 14px 6px 0;
vertical-align:bottom}
td{border-bottom:1px solid var(--line);padding:6px 14px 6px 0;vertical-align:top}
tr:last-child td{border-bottom:0}
td:first-child{white-space:nowrap}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:8px 0;font-size:14px}
dl.facts dt{color:var(--soft)}dl.facts dd{margin:0;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.tile{border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tile .name{color:var(--soft);font-size:13px}.tile .value{font-size:25px;font-weight:650;letter-spacing:-.01em}
.tile .remark{color:var(--soft);font-size:12.5px}
.notes{background:var(--warn);border-left:4px solid var(--warnline);border-radius:6px;padding:10px 16px 10px 32px;
margin:0 0 8px;font-size:14.5px}
.figure{margin:6px 0 10px}.figure svg{width:100%;height:auto;display:block}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:12px}
.card{border:1px solid var(--line);border-radius:10px;padding:10px 12px;font-size:13px}
.card .mol svg{width:100%;height:auto;display:block}
.card code{display:block;font-size:11.5px;color:var(--soft);overflow-wrap:anywhere;margin:2px 0 6px}
.card .near{border-top:1px solid var(--line);margin-top:8px;padding-top:6px;display:grid;
grid-template-columns:78px 1fr;gap:8px;align-items:center;color:var(--soft);font-size:12px}
.card b{font-weight:600}
.card .vals{font-variant-numeric:tabular-nums}
.bar{height:6px;border-radius:3px;background:var(--line);margin-top:3px}
.bar i{display:block;height:6px;border-radius:3px;
background:var(--c0)}
pre{font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--bg);
border:1px solid var(--line);
border-radius:8px;padding:12px;overflow:auto;max-height:520px}
details summary{cursor:pointer;color:var(--link);font-size:14.5px;margin:6px 0}
@media print{section{break-inside:avoid;border:0;padding:8px 0}nav{display:none}body{background:#fff}}
"""
