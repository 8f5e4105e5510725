"""How the page looks: theme, style sheet, a little script. Only system fonts."""

from __future__ import annotations

import gradio as gr

_SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """A quiet theme: slate, one blue."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=[gr.themes.Font(name) for name in _SANS],
        font_mono=[gr.themes.Font(name) for name in _MONO],
    ).set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#0f131a",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#161b24",
        background_fill_secondary="#f6f7f9",
        background_fill_secondary_dark="#11161e",
        block_background_fill="#ffffff",
        block_background_fill_dark="#161b24",
        block_border_color="#e3e7ed",
        block_border_color_dark="#262d39",
        block_shadow="none",
        block_label_text_size="12px",
        input_border_width="1px",
        input_border_color="#d5dbe4",
        input_border_color_dark="#313a49",
        input_background_fill="#ffffff",
        input_background_fill_dark="#10151d",
        button_primary_background_fill="#0067a5",
        button_primary_background_fill_hover="#005488",
        button_primary_background_fill_dark="#0a78bd",
        button_primary_background_fill_hover_dark="#1489d0",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        slider_color="#0067a5",
        slider_color_dark="#3d9fdc",
    )


CSS = """
:root{--lv-text:#1d2430;--lv-soft:#566174;--lv-line:#e3e7ed;--lv-card:#fff;--lv-sunk:#f1f3f7;
 --lv-accent:#0067a5;--lv-sim:#56b4e9;--lv-ctx:#e69f00;--lv-rule:#cc79a7;--lv-merged:#009e73;
 --lv-ink-0:#0067a5;--lv-ink-1:#c2410c;--lv-ink-2:#00805e;--lv-ink-3:#9a4b7c;--lv-full:#97a3b6;
 --lv-warn:#fff7e6;--lv-warn-line:#e6b450;--lv-bad:#fdeeee;--lv-bad-line:#d0493f;--lv-cut:50%;
 --lv-fade:1}
.dark{--lv-text:#e7ebf2;--lv-soft:#a3aec0;--lv-line:#2a3240;--lv-card:#161b24;--lv-sunk:#1d2430;
 --lv-accent:#58b4ec;--lv-ink-0:#58b4ec;--lv-ink-1:#f0894a;--lv-ink-2:#35c79d;--lv-ink-3:#dd93bf;
 --lv-full:#6b7890;--lv-warn:#2b2412;--lv-warn-line:#a67c1f;--lv-bad:#321a1b;--lv-bad-line:#c8544c}
.gradio-container{width:100%!important;max-width:1240px!important;margin:0 auto!important;
 color:var(--lv-text);padding:0!important;min-width:0!important}
.gradio-container .main{padding:0 24px 16px!important}
.gradio-container main>.column{gap:12px}
.lv-html .html-container{padding:0!important}
.lv-head{padding:20px 0 0}
.lv-head h1{font-size:27px;font-weight:680;letter-spacing:-.02em;margin:0 0 4px;line-height:1.15}
.lv-head p{margin:0;color:var(--lv-soft);font-size:15px;max-width:110ch;line-height:1.5}
.lv-model{font-size:13px!important;color:var(--lv-soft)}
.lv-model b{color:var(--lv-text);font-weight:600}
.lv-left,.lv-right{gap:12px!important}
@media (min-width:900px){.lv-left{max-width:400px}}
.lv-html,.lv-html .prose{font-size:14px;color:var(--lv-text)}
.lv-html p{margin:0}
.lv-hidden{display:none!important}
/* notices */
.lv-notice{border:1px solid var(--lv-line);border-radius:10px;padding:14px 16px;
 background:var(--lv-card);line-height:1.5}
.lv-notice strong{font-weight:620;color:var(--lv-text)}
.lv-notice p{color:var(--lv-soft);margin-top:3px!important}
.lv-empty{border-style:dashed;background:transparent;text-align:center;padding:56px 28px}
.lv-empty p{max-width:52ch;margin:6px auto 0!important}
.lv-warn{background:var(--lv-warn);border-color:var(--lv-warn-line)}
.lv-error{background:var(--lv-bad);border-color:var(--lv-bad-line)}
.lv-views+.lv-notice{margin-top:12px}
.lv-note{font-size:13px;line-height:1.45;color:var(--lv-soft);border-left:3px solid
 var(--lv-warn-line);padding:1px 0 1px 10px;margin-top:8px}
#lv-state{min-height:30px}
.lv-status{font-size:14px;font-weight:560;font-variant-numeric:tabular-nums}
/* stages: the photo once, see-through layers above it */
.lv-stage{position:relative;width:100%;max-width:calc(64vh*var(--lv-ratio));margin:0 auto;
 border-radius:8px;overflow:hidden;background:#0d111b center/100% 100% no-repeat;
 isolation:isolate;touch-action:pan-y}
.lv-stage::before{content:"";position:absolute;inset:0;background:var(--lv-photo) center/100% 100%
 no-repeat}
.lv-grey::before{filter:grayscale(1)}
.lv-layer{position:absolute!important;inset:0;width:100%!important;height:100%!important;
 margin:0!important;max-width:none!important;image-rendering:auto;pointer-events:none}
.lv-fade{opacity:var(--lv-fade)}
.lv-left-none{display:none}
.lv-compare .lv-left{clip-path:inset(0 calc(100% - var(--lv-cut)) 0 0);max-width:none!important}
.lv-compare .lv-right{clip-path:inset(0 0 0 var(--lv-cut))}
.lv-handle{position:absolute;top:0;bottom:0;left:var(--lv-cut);width:2px;margin-left:-1px;
 background:#fff;box-shadow:0 0 0 1px rgba(0,0,0,.35);pointer-events:none}
.lv-handle::after{content:"\\2194";position:absolute;top:50%;left:50%;width:34px;height:34px;
 margin:-17px;border-radius:50%;background:#fff;color:#1d2430;font-size:19px;line-height:34px;
 text-align:center;box-shadow:0 1px 6px rgba(0,0,0,.45)}
.lv-range{position:absolute!important;inset:0;width:100%!important;height:100%!important;
 margin:0!important;opacity:0;cursor:ew-resize}
.lv-range:focus-visible~.lv-none,.lv-compare:focus-within{outline:3px solid var(--lv-accent);
 outline-offset:2px}
.lv-compare:not(:has(:focus-visible)){outline:none}
.lv-tag{position:absolute;top:10px;padding:3px 9px;border-radius:20px;font-size:12px;
 font-weight:600;background:rgba(13,17,27,.72);color:#fff;pointer-events:none}
.lv-tag-left{left:10px}.lv-tag-right{right:10px}
/* two views of the masks */
.lv-switch{display:inline-flex;align-items:center;border:1px solid var(--lv-line);
 border-radius:8px;padding:2px;background:var(--lv-sunk);margin-bottom:10px}
.lv-switch button{border:0;background:none;margin:0!important;padding:5px 12px;
 border-radius:6px;font-size:13px;color:var(--lv-soft);cursor:pointer;font-weight:540}
.lv-view-sides{display:var(--lv-sides,block)}
.lv-sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:10px}
.lv-answer{border:1px solid var(--lv-line);border-radius:8px;padding:8px 12px;
 background:var(--lv-card);overflow-wrap:anywhere;white-space:pre-line}
.lv-answer small{color:var(--lv-soft)}.lv-answer p{margin:4px 0 0!important}
.lv-view-compare{display:var(--lv-compare,none)}
.lv-view-overlay{display:var(--lv-overlay,none)}
.lv-view-rank{display:var(--lv-rank,block)}
.lv-view-raw{display:var(--lv-raw,none)}
.lv-html abbr{text-decoration:underline dotted;text-underline-offset:3px;cursor:help}
#lv-card{max-height:320px;overflow:auto;font-size:13px}
.lv-foot a{color:var(--lv-accent)!important;padding:0!important}
.lv-foot p{color:var(--lv-soft)}
.lv-switch button[aria-pressed=true]{background:var(--lv-card);color:var(--lv-text);
 box-shadow:0 1px 2px rgba(0,0,0,.14)}
.lv-caption{font-size:13px;color:var(--lv-soft);margin:8px 0 0!important;line-height:1.45}
.lv-html h4{font-size:13px;font-weight:620;margin:16px 0 6px;color:var(--lv-text)}
.lv-legend{list-style:none!important;padding:0!important;margin:14px 0 0!important}
.lv-legend li{display:flex;gap:9px;align-items:baseline;margin:0 0 7px!important;
 line-height:1.45;padding:0!important}
.lv-legend b{font-weight:640;font-variant-numeric:tabular-nums}
.lv-legend .lv-phrase{margin-right:4px}
.lv-phrase,.lv-said{overflow-wrap:anywhere}
.lv-said{color:var(--lv-soft)}
.lv-swatch{display:inline-block;flex:none;width:13px;height:13px;border-radius:3px;
 box-shadow:inset 0 0 0 1px rgba(0,0,0,.28);transform:translateY(1.5px)}
.lv-swatch.lv-sim{background:radial-gradient(circle,#0b3a55 0 2px,transparent 2.5px),var(--lv-sim)}
.lv-swatch.lv-ctx{background:var(--lv-ctx)}.lv-swatch.lv-rule{background:var(--lv-rule)}
.lv-swatch.lv-merged{background:var(--lv-merged)}.lv-swatch.lv-dropped{background:#0d111b;
 box-shadow:inset 0 0 0 1px #566174}
.lv-swatch.lv-unseen{background:repeating-linear-gradient(135deg,#0d111b 0 3px,#8a8f9a 3px 4.5px)}
.lv-swatch.lv-pruned,.lv-swatch.lv-inside{background:var(--lv-ink-0)}
.lv-swatch.lv-full,.lv-swatch.lv-outside{background:var(--lv-full)}
.lv-counts{display:flex;flex-wrap:wrap;gap:4px 22px}
.lv-text{margin-top:8px;line-height:1.55;color:var(--lv-soft)}
.lv-text b{color:var(--lv-text)}
.lv-text p+p{margin-top:6px}
.lv-opacity{display:flex;align-items:center;gap:8px;justify-content:flex-end;font-size:12px;
 color:var(--lv-soft);margin-top:8px}
.lv-opacity input{width:120px;accent-color:var(--lv-accent)}
/* charts */
.lv-chart{width:100%;max-width:560px;height:auto;display:block;font-size:12px}
.lv-chart text{fill:var(--lv-soft);font-variant-numeric:tabular-nums}
.lv-chart .lv-strong{fill:var(--lv-text);font-weight:600}
.lv-tick,.lv-axis{stroke:var(--lv-soft);stroke-width:1}
.lv-cut-line{stroke:var(--lv-text);stroke-width:2}
.lv-grid{stroke:var(--lv-line);stroke-width:1}
.lv-level{stroke:var(--lv-soft);stroke-width:1.2;stroke-dasharray:2 3}
.lv-bar-inside{fill:var(--lv-ink-0)}.lv-bar-outside{fill:var(--lv-full)}
.lv-line{fill:none;stroke-width:2.2;stroke-linejoin:round}
.lv-line.lv-ink-0{stroke:var(--lv-ink-0)}.lv-line.lv-ink-1{stroke:var(--lv-ink-1)}
.lv-line.lv-ink-2{stroke:var(--lv-ink-2)}.lv-line.lv-ink-3{stroke:var(--lv-ink-3)}
.lv-dot.lv-ink-0{fill:var(--lv-ink-0)}.lv-dot.lv-ink-1{fill:var(--lv-ink-1)}
.lv-dot.lv-ink-2{fill:var(--lv-ink-2)}.lv-dot.lv-ink-3{fill:var(--lv-ink-3)}
.lv-key{width:34px;height:12px;display:inline-block;vertical-align:-1px}
.lv-key-line{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--lv-soft);
 margin:12px 0 8px;align-items:baseline}
.lv-charts{display:flex;flex-wrap:wrap;gap:10px 24px}
.lv-half{flex:1 1 290px;min-width:0;max-width:480px}
.lv-progress{height:5px;border-radius:3px;background:var(--lv-sunk);overflow:hidden}
.lv-progress i{display:block;height:100%;background:var(--lv-accent)}
/* cost */
.lv-tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(158px,1fr));gap:10px}
.lv-tile{border:1px solid var(--lv-line);border-radius:10px;padding:10px 12px;
 display:flex;flex-direction:column;gap:1px;min-width:0}
.lv-tile span{font-size:12px;color:var(--lv-soft)}
.lv-tile b{font-size:19px;font-weight:660;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.lv-tile small{display:inline-block;white-space:nowrap;font-size:12px;
 font-weight:450;color:var(--lv-soft);letter-spacing:0}
.lv-tile em{font-style:normal;font-size:11.5px;color:var(--lv-soft);line-height:1.35}
.lv-bars{display:grid;gap:9px}
.lv-bar-row{display:grid;grid-template-columns:minmax(96px,170px) 1fr 74px;gap:12px;
 align-items:center;font-size:13px;line-height:1.35}
.lv-bar-row>span:last-child{text-align:right;font-variant-numeric:tabular-nums;
 color:var(--lv-soft);font-size:12px}
.lv-pair{display:grid;gap:3px}
.lv-track{position:relative;height:11px;background:var(--lv-sunk);border-radius:3px}
.lv-fill{position:absolute;inset:0 auto 0 0;border-radius:3px;min-width:1px}
.lv-fill.lv-pruned{background:var(--lv-ink-0)}.lv-fill.lv-full,.lv-fill.lv-once{
 background:var(--lv-full)}
.lv-whisker{position:absolute;top:5px;height:1.5px;background:var(--lv-text)}
.lv-sum{border-top:1px solid var(--lv-line);padding-top:8px;font-weight:600}
.lv-details{margin-top:10px;font-size:13px}
.lv-details summary{cursor:pointer;color:var(--lv-soft)}
.lv-details table{margin-top:8px;border-collapse:collapse;font-variant-numeric:tabular-nums}
.lv-details td,.lv-details th{padding:3px 14px 3px 0;text-align:left;border:0!important;
 font-weight:450}
/* budget marks, examples, links */
.lv-marks{display:flex;flex-wrap:wrap;gap:6px}
.lv-marks button{border:1px solid var(--lv-line);background:var(--lv-card);color:var(--lv-soft);
 border-radius:14px;font-size:12px;padding:2px 10px;cursor:pointer;margin:0;line-height:1.4;
 font-variant-numeric:tabular-nums;min-height:26px}
.lv-marks button[aria-pressed=true]{border-color:var(--lv-accent);color:var(--lv-text)}
.lv-marks button:hover{border-color:var(--lv-accent);color:var(--lv-accent)}
.lv-examples{display:flex;gap:8px;overflow-x:auto;padding:3px 2px 5px;scrollbar-width:thin}
.lv-examples button{flex:0 0 122px;border:1px solid var(--lv-line);background:var(--lv-card);
 padding:0;margin:0;border-radius:8px;overflow:hidden;cursor:pointer;text-align:left}
.lv-examples button:hover{border-color:var(--lv-accent)}
.lv-examples img{width:100%!important;height:70px!important;object-fit:cover;display:block;
 margin:0!important;border-radius:0!important}
.lv-examples span{display:block;font-size:11.5px;line-height:1.3;padding:4px 7px 5px;
 color:var(--lv-soft);white-space:nowrap;overflow:hidden;text-overflow:ellipsis;
 font-weight:450}
.lv-act{align-self:flex-start}
.lv-acts{gap:8px!important;flex-wrap:nowrap!important}
#lv-phrase label{padding:4px 10px!important;font-size:13px}
.lv-html button:focus-visible,.lv-html a:focus-visible{outline:3px solid var(--lv-accent);
 outline-offset:1px}
.lv-links{display:flex;flex-wrap:wrap;gap:8px}
.lv-link{border:1px solid var(--lv-line);border-radius:8px;padding:7px 12px;font-size:13px;
 text-decoration:none!important;color:var(--lv-text)!important;background:var(--lv-card);
 overflow-wrap:anywhere}
.lv-link:hover{border-color:var(--lv-accent)}
.lv-link small{color:var(--lv-soft);margin-left:4px}
.lv-foot{font-size:12.5px;color:var(--lv-soft);line-height:1.55;padding:10px 0 0}
.lv-words{max-height:180px;overflow:auto;font-size:13px;line-height:1.6;color:var(--lv-soft)}
@media (max-width:640px){
 .gradio-container .main{padding:0 12px 12px!important}
 .lv-head h1{font-size:23px}
 .lv-head p{font-size:14px}
 #lv-tabs .tab-container button{padding:0 5px!important;font-size:12.5px!important}
 .lv-bar-row{grid-template-columns:1fr 74px}
 .lv-bar-row>span:first-child{grid-column:1/-1;margin-bottom:-6px}
 .lv-bar-row.lv-sum>span:nth-child(2){display:none}
 .lv-bar-row.lv-sum{grid-template-columns:1fr 100px}
 .lv-bar-row.lv-sum>span:first-child{grid-column:auto;margin:0}
 .lv-empty{padding:32px 16px}
}
@media (prefers-reduced-motion:no-preference){.lv-switch button,.lv-link,.lv-marks button{
 transition:border-color .12s,color .12s,background .12s}}
"""

# One listener on the document, so that parts drawn anew need none of their own.
# Moving the budget: the first move runs at once, further moves within QUIET ms wait for a pause,
# so dragging to and fro costs two runs at most and the last value wins.
SCRIPT = """
(() => {
  const QUIET = 350, VIEWS = [['sides', 'compare', 'overlay'], ['rank', 'raw']];
  let last = -1e9, timer = 0;
  const root = document.documentElement;
  const rerun = () => { const b = document.querySelector('#lv-rerun'); if (b) b.click(); };
  const pressed = () => {  // Gradio scopes the style sheet, so state lives in variables of the root
    const open = (v) => root.style.getPropertyValue('--lv-' + v) === 'block';
    const shown = VIEWS.map((group) => group.find(open) || group[0]);
    document.querySelectorAll('[data-lv-view]').forEach((button) => {
      const on = String(shown.includes(button.dataset.lvView));
      if (button.getAttribute('aria-pressed') !== on) button.setAttribute('aria-pressed', on);
    });
  };
  const chips = () => {  // the common budget that the slider stands on
    const range = document.querySelector('#lv-budget input[type=range]');
    document.querySelectorAll('[data-lv-budget]').forEach((button) => {
      const on = String(!!range && range.value === button.dataset.lvBudget);
      if (button.getAttribute('aria-pressed') !== on) button.setAttribute('aria-pressed', on);
    });
  };
  const moved = () => {
    const now = performance.now(), pause = now - last;
    last = now;
    clearTimeout(timer);
    timer = setTimeout(rerun, pause > QUIET ? 0 : QUIET);
  };
  document.addEventListener('change', (event) => {
    if (event.target.closest && event.target.closest('#lv-budget')) moved();
  }, true);
  document.addEventListener('input', (event) => {
    const t = event.target;
    if (t.closest('#lv-budget')) chips();
    if (t.matches('.lv-range')) root.style.setProperty('--lv-cut', t.value + '%');
    if (t.matches('.lv-opacity-range')) root.style.setProperty('--lv-fade', t.value / 100);
  }, true);
  document.addEventListener('click', (event) => {
    const near = (what) => event.target.closest && event.target.closest(what);
    const view = near('[data-lv-view]');
    if (view) {
      const wanted = view.dataset.lvView;
      VIEWS.find((group) => group.includes(wanted)).forEach((v) =>
        root.style.setProperty('--lv-' + v, v === wanted ? 'block' : 'none'));
      pressed();
    }
    const mark = near('[data-lv-budget]');
    if (mark) {
      const range = document.querySelector('#lv-budget input[type=range]');
      if (!range) return;
      const write = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
      write.call(range, mark.dataset.lvBudget);
      range.dispatchEvent(new Event('input', {bubbles: true}));
      range.dispatchEvent(new Event('change', {bubbles: true}));
    }
  }, true);
  let asked = false;
  document.addEventListener('click', (event) => {
    const t = event.target;
    if (t.closest && (t.closest('#lv-run') || t.closest('[data-lv-example]'))) asked = true;
  }, true);
  new MutationObserver(() => {
    const status = document.querySelector('#lv-state .lv-status');
    if (asked && status && !status.dataset.lvSeen) {
      asked = false;
      status.dataset.lvSeen = '1';
      const tabs = document.querySelector('#lv-tabs');  // below the inputs on a narrow screen
      if (tabs && innerWidth < 900) tabs.scrollIntoView({behavior: 'smooth'});
    }
    pressed();
    chips();
    const cut = parseFloat(root.style.getPropertyValue('--lv-cut'));
    const fade = parseFloat(root.style.getPropertyValue('--lv-fade'));
    document.querySelectorAll('.lv-range:not([data-lv-set])').forEach((range) => {
      range.dataset.lvSet = '1';
      if (!isNaN(cut)) range.value = cut;
    });
    document.querySelectorAll('.lv-opacity-range:not([data-lv-set])').forEach((range) => {
      range.dataset.lvSet = '1';
      if (!isNaN(fade)) range.value = fade * 100;
    });
  }).observe(document, {childList: true, subtree: true});
})();
"""
