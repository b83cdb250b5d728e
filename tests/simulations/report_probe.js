// Measures the report that it is put into, before and after its theme button is pressed,
// and posts what it found to the page around it.
"use strict";

function numbers(colour) {
  return colour.match(/[\d.]+/g).slice(0, 3).map(Number);
}

// Relative luminance and contrast ratio as WCAG 2 defines them.
function luminance(rgb) {
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = rgb.map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(a, b) {
  const [high, low] = [luminance(a), luminance(b)].sort((p, q) => q - p);
  return (high + 0.05) / (low + 0.05);
}

function background(element) {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return numbers(colour);
  }
  return [255, 255, 255];
}

function leaves(text) {
  const [own, plot] = [text.getBoundingClientRect(), text.closest(".plot").getBoundingClientRect()];
  const beside = own.left < plot.left - 1 || own.right > plot.right + 1;
  return beside || own.top < plot.top - 1 || own.bottom > plot.bottom + 1;
}

function measure() {
  const page = numbers(getComputedStyle(document.body).backgroundColor);
  const plots = [...document.querySelectorAll(".plot")];
  const words = [...document.querySelectorAll("h1, p, dt, td, th, li, pre, figcaption, .note")];
  const labels = [...document.querySelectorAll(".plot text")].filter(
    (text) => text.textContent.trim() && text.getBoundingClientRect().width,
  );
  const drawn = (plot) => plot.querySelector(".main-svg") && plot.clientHeight > 50;
  const fill = (text) => numbers(text.style.fill || getComputedStyle(text).fill);
  return {
    page,
    inner: innerWidth,
    scroll: document.documentElement.scrollWidth,
    plots: plots.length,
    drawn: plots.filter(drawn).length,
    labels: labels.length,
    outside: labels.filter(leaves).map((text) => text.textContent),
    contrast: Math.min(
      ...words.map((e) => contrast(numbers(getComputedStyle(e).color), background(e))),
      ...labels.map((text) => contrast(fill(text), page)),
    ),
    curve: document.querySelector("#accuracy .js-line").style.stroke,
  };
}

addEventListener("load", () => {
  const before = measure();
  document.getElementById("theme").click();
  parent.postMessage({ frame: window.name, before, after: measure() }, "*");
});
