"""The style sheet of `report.html`: one column, light and dark, screens from a phone's on."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #faf9f6; --card: #ffffff; --text: #22262b; --soft: #5d646c; --rule: #dedbd3; --track: #ece9e2;
  --accent: #0a6b66; --heat: 10, 107, 102; --heat-text: #ffffff;
  --source: #8b9198; --oracle: #22262b;
  --c0: #c2571a; --c1: #3767b5; --c2: #8e4a9c; --c3: #7d7410; --c4: #b3315b; --c5: #6f5848;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #16181b; --card: #1d2024; --text: #e7e5e0; --soft: #a2a8af; --rule: #33383e; --track: #2a2e33;
    --accent: #4dc4b6; --heat: 77, 196, 182; --heat-text: #0d1011;
    --source: #8d949c; --oracle: #e7e5e0;
    --c0: #f0965a; --c1: #7fa8ec; --c2: #cf92dc; --c3: #cdc04e; --c4: #ee7fa2; --c5: #c2a48e;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1040px; margin: 0 auto; padding: 40px 24px 64px; }
h1, h2 { font-family: Charter, "Iowan Old Style", Georgia, "Noto Serif", "DejaVu Serif", serif; line-height: 1.2; }
h1 { font-size: 2.1rem; margin: 0 0 12px; font-weight: 600; overflow-wrap: anywhere; }
h2 { font-size: 1.4rem; margin: 56px 0 10px; padding-top: 18px; border-top: 1px solid var(--rule); font-weight: 600; }
h3 { font-size: 1rem; margin: 26px 0 8px; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 0 0 14px; max-width: 44rem; }
.lede { font-size: 1.12rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
a { color: var(--accent); }
nav { margin: 20px 0 0; font-size: .92rem; }
nav a { display: inline-block; margin: 0 16px 6px 0; }

.shares { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px; margin: 26px 0 0; }
.shares div {
  display: flex; flex-direction: column-reverse; justify-content: flex-end;
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 18px 16px;
}
.shares dt { color: var(--soft); font-size: .9rem; line-height: 1.4; }
.shares dd {
  margin: 0 0 4px; font-size: 1.9rem; line-height: 1.2;
  font-family: Charter, "Iowan Old Style", Georgia, "Noto Serif", "DejaVu Serif", serif;
}
.shares div:first-child dd { color: var(--accent); }

.box { overflow-x: auto; -webkit-overflow-scrolling: touch; margin: 0 0 14px; }
table { border-collapse: collapse; font-size: .92rem; width: 100%; }
th, td { padding: 7px 12px; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
thead th { font-weight: 500; color: var(--soft); vertical-align: bottom; white-space: normal; min-width: 5.2rem; }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--page); }
tbody th { font-weight: 500; }
tr.method th, tr.method td { font-weight: 700; }
tr.mean th, tr.mean td { border-top: 2px solid var(--rule); }

.key { display: inline-block; width: 18px; height: 0; border-top: 3px solid currentColor; vertical-align: middle;
  margin-right: 9px; }
.key.s-oracle { border-top-style: dashed; }
.swatch { display: inline-block; width: 14px; height: 14px; border-radius: 3px; border: 1px solid var(--soft);
  vertical-align: -2px; margin-right: 7px; }
.s-method { color: var(--accent); } .s-source { color: var(--source); } .s-oracle { color: var(--oracle); }
.s-0 { color: var(--c0); } .s-1 { color: var(--c1); } .s-2 { color: var(--c2); }
.s-3 { color: var(--c3); } .s-4 { color: var(--c4); } .s-5 { color: var(--c5); }

.bars { list-style: none; margin: 22px 0 26px; padding: 0; }
.bars li { display: grid; grid-template-columns: minmax(7.5rem, 12rem) 1fr 3.2rem; gap: 12px; align-items: center;
  padding: 4px 0; }
.bars .name { overflow-wrap: anywhere; line-height: 1.25; font-size: .95rem; }
.bars .value { text-align: right; }
.bars .method .name, .bars .method .value { font-weight: 700; }
.track { display: block; position: relative; background: var(--track); border-radius: 3px; height: 14px; }
.fill { position: absolute; left: 0; top: 0; bottom: 0; border-radius: 3px; background: currentColor; }
.classes li { grid-template-columns: minmax(6.6rem, 9rem) 1fr 9.6rem; }
.classes .track { height: 20px; }
.classes .before { bottom: 60%; } .classes .after { top: 45%; }
.classes .mark { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--oracle); }
.classes .name { white-space: nowrap; }
.classes .value { font-size: .9rem; white-space: nowrap; }
.classes .value b { display: inline-block; min-width: 3rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 16px; padding: 0;
  font-size: .9rem; }

figure { margin: 0 0 26px; }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; }
.panels { display: grid; grid-template-columns: repeat(4, 1fr); gap: 10px; }
.panels > div { min-width: 0; }
.panels img { background: #000; }
.maps img { image-rendering: pixelated; }
.scatter { display: block; width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
.scatter path { fill: none; stroke-width: 15; stroke-linecap: round; stroke-opacity: .85; }
.panels span { display: block; font-size: .85rem; color: var(--soft); margin-bottom: 3px; overflow-wrap: anywhere; }
figcaption { margin-top: 7px; overflow-wrap: anywhere; }
.strip img { border: 1px solid var(--rule); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 470px), 1fr)); gap: 0 32px; }

.beside { display: grid; grid-template-columns: minmax(0, 640px) minmax(0, 1fr); gap: 28px; align-items: center; }
.beside .legend { flex-direction: column; gap: 6px; margin: 0; }
.beside .legend li { display: grid; grid-template-columns: auto 1fr auto; gap: 4px; align-items: center; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr)); gap: 16px; }
.cards figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 12px 14px 6px; }
.cards h3 { margin: 0 0 6px; }
.cards figcaption { margin: 6px 0; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 14px; font-family: inherit; }
.cards .chart text { font-size: 23px; }
.chart .middle { text-anchor: middle; } .chart .end { text-anchor: end; }
.chart .grid { stroke: var(--rule); stroke-width: 1; fill: none; }
.chart .axis { stroke: var(--soft); stroke-width: 1; fill: none; }
.chart .line { stroke: currentColor; stroke-width: 2.4; fill: none; stroke-linejoin: round; }
.chart .s-oracle.line { stroke-dasharray: 7 5; }
.cards .chart .s-oracle.line { stroke-dasharray: none; }
.chart .s-method.line { stroke-width: 3.6; }
.chart .faint { stroke: currentColor; stroke-width: 1; fill: none; opacity: .3; }
.chart .dot { fill: currentColor; }

.confusion { font-size: .74rem; width: auto; }
.confusion th, .confusion td { padding: 0; border: 1px solid var(--page); text-align: center; }
.confusion td { width: 26px; min-width: 26px; height: 25px; background: rgba(var(--heat), var(--share)); }
.confusion td.high { color: var(--heat-text); }
@media (prefers-color-scheme: dark) {
  .confusion td.mid { color: var(--heat-text); }
  .scatter { background: #eceae6; }
}
.confusion thead th { min-width: 0; height: 6.4rem; vertical-align: bottom; }
.confusion thead span { writing-mode: vertical-rl; transform: rotate(180deg); padding: 4px 0; }
.confusion tbody th { text-align: right; padding-right: 8px; }
.confusion thead th:first-child { text-align: right; padding: 0 8px 4px 0; }

ul.plain { padding-left: 1.2rem; margin: 0 0 16px; }
ul.plain li { overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); margin: 0 0 10px; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; overflow: auto;
  max-height: 32rem; font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0 0 16px; }
footer { margin-top: 48px; padding-top: 14px; border-top: 1px solid var(--rule); }

@media (max-width: 760px) {
  main { padding: 24px 16px 48px; }
  h1 { font-size: 1.6rem; }
  h2 { margin-top: 44px; }
  .shares { grid-template-columns: 1fr; gap: 10px; }
  .shares div { display: grid; grid-template-columns: 6.4rem 1fr; align-items: center; padding: 10px 14px; }
  .shares dt { order: 2; }
  .shares dd { font-size: 1.5rem; margin: 0; }
  .bars li { grid-template-columns: 7.2rem 1fr 2.6rem; gap: 10px; }
  .classes li { grid-template-columns: 7rem 1fr 5.8rem; }
  .classes .name { font-size: .88rem; }
  .classes .value b { display: none; }
  .panels { grid-template-columns: repeat(2, 1fr); }
  .beside { grid-template-columns: minmax(0, 1fr); gap: 12px; }
  .chart text { font-size: 20px; }
  .cards .chart text { font-size: 20px; }
  th, td { padding: 7px 6px; }
  thead th { min-width: 4.2rem; }
  .confusion th, .confusion td { padding: 0; }
}
@media print { .box { overflow: visible; } details > * { display: block; } }
"""
