// Runs in the browser: tokens as coloured text, keys, the theme. Texts become text nodes, never markup.
"use strict";

// Sizes in charts, given for texts of 16 px, follow those of the page, which are larger on a large screen.
function scaled(size) { return size * parseFloat(getComputedStyle(document.documentElement).fontSize) / 16; }

// Orange for the unlikely, the old and the negative, blue for the new and the positive: told apart with any colour vision.
// A share is in [-1, 1]; the text stays readable in both themes, because the colour is laid thinly over the ground.
function paint(share) {
  const ink = share < 0 ? "213,94,0" : "28,130,201";
  return `rgba(${ink},${(0.6 * Math.min(1, Math.abs(share))).toFixed(3)})`;
}

class Tokens extends HTMLElement {
  set said(value) { this._said = value; this.draw(); }
  set colour(value) { this._colour = value; this.draw(); }

  draw() {
    const said = this._said;
    if (!said) return;
    const whole = document.createDocumentFragment();
    said.pieces.forEach((piece, at) => {
      const token = document.createElement("span");
      token.textContent = piece;
      const sampled = said.logprobs[at] !== null;
      const share = sampled ? this.share(said, at) : null;
      token.className = !sampled ? "t seen" : "t";
      if (share !== null) token.style.background = paint(share);
      token.title = !sampled ? "observed: from the environment or the template, not trained"
        : `logprob ${said.logprobs[at].toFixed(3)} nats (p = ${Math.exp(said.logprobs[at]).toPrecision(3)}), version ${said.versions[at]}`
          + this.figures(said, at);
      whole.append(token);
    });
    this.replaceChildren(whole);
  }

  figures(said, at) {
    if (!said.ratios) return "";
    const ratio = said.ratios[at], entropy = said.entropies[at];
    return ratio === null || entropy === null ? ", not trained" : `, ratio ${ratio.toPrecision(4)}, entropy ${entropy.toFixed(3)} nats`;
  }

  share(said, at) {
    if (this._colour === "entropy") return said.entropies && said.entropies[at] !== null ? said.entropies[at] / 2 : null;
    if (this._colour === "ratio") return said.ratios && said.ratios[at] !== null ? Math.log(said.ratios[at]) / Math.log(1.3) : null;
    if (this._colour === "logprob") return Math.max(-4, said.logprobs[at]) / 4;
    if (this._colour === "version") {
      const known = said.versions.filter((one) => one >= 0), low = Math.min(...known), high = Math.max(...known);
      return high > low ? 2 * (said.versions[at] - low) / (high - low) - 1 : 0.5;
    }
    if (this._colour === "advantage" && said.advantage !== null) return said.advantage / 2;
    return null;
  }
}
customElements.define("sl-tokens", Tokens);

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  if (event.key === "Enter" && event.target.matches("th.sortable")) event.target.click();
  const tabs = [...document.querySelectorAll(".tabs a")];
  const go = (selector) => document.querySelector(selector)?.click();
  if (/^[1-9]$/.test(event.key)) tabs[Number(event.key) - 1]?.click();
  else if (event.key === "[") go("a[data-key=before]");
  else if (event.key === "]") go("a[data-key=after]");
  else if (event.key === "t") go("[data-key=theme]");
  else if (event.key === "/") { const field = document.querySelector(".filters input"); if (field) { event.preventDefault(); field.focus(); } }
}
document.addEventListener("keydown", pressed);

// A column's head that orders the table can be reached by Tab, and Enter presses it.
new MutationObserver(() => {
  for (const head of document.querySelectorAll("th.sortable:not([tabindex])")) head.tabIndex = 0;
}).observe(document.documentElement, { childList: true, subtree: true });

// On a phone the tabs scroll: the open one is in sight.
new MutationObserver((_, observer) => {
  const tab = document.querySelector(".tabs a[aria-current]");
  if (!tab) return;
  observer.disconnect();
  tab.parentElement.scrollLeft = tab.offsetLeft - (tab.parentElement.clientWidth - tab.offsetWidth) / 2;
}).observe(document.documentElement, { childList: true, subtree: true });

function nextTheme() {
  const dark = !document.body.classList.contains("body--dark");
  document.cookie = `sluice-theme=${dark ? "dark" : "light"}; path=/; max-age=31536000; samesite=lax`;
  Quasar.Dark.set(dark);
}
