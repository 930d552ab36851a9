// Runs in the browser: tokens as coloured text, keys, the theme. Texts become text nodes, never markup.
"use strict";

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
        : `logprob ${said.logprobs[at].toFixed(3)} nats (p = ${Math.exp(said.logprobs[at]).toPrecision(3)}), version ${said.versions[at]}`;
      whole.append(token);
    });
    this.replaceChildren(whole);
  }

  share(said, at) {
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
  const tabs = [...document.querySelectorAll(".tabs a")];
  const go = (selector) => document.querySelector(selector)?.click();
  if (/^[1-9]$/.test(event.key)) tabs[Number(event.key) - 1]?.click();
  else if (event.key === "[") go("a[data-key=before]");
  else if (event.key === "]") go("a[data-key=after]");
  else if (event.key === "t") go("[data-key=theme]");
  else if (event.key === "/") { const field = document.querySelector(".filters input"); if (field) { event.preventDefault(); field.focus(); } }
}
document.addEventListener("keydown", pressed);

function nextTheme() {
  const dark = !document.body.classList.contains("body--dark");
  document.cookie = `sluice-theme=${dark ? "dark" : "light"}; path=/; max-age=31536000; samesite=lax`;
  Quasar.Dark.set(dark);
}
