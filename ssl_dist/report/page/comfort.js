"use strict";
// Values under the pointer. Whatever a reader needs stands on the page without this.
const shown = (value, percent) => value === null ? "not finite" :
  percent ? (100 * value).toFixed(1) + " %" : String(Number(value.toPrecision(4))).replace("-", "\u2212");

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle; else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
}

for (const figure of document.querySelectorAll(".chart")) {
  const plot = figure.querySelector(".plot"), data = JSON.parse(plot.dataset.points), box = plot.viewBox.baseVal;
  const [left, right, top, bottom] = plot.dataset.frame.split(" ").map(Number);
  const values = [...figure.querySelectorAll(".legend b")], place = figure.querySelector(".at");
  const last = values.map((one) => one.textContent);
  const cursor = plot.querySelector(".cursor");
  plot.addEventListener("pointermove", (event) => {
    const frame = plot.getBoundingClientRect();
    const at = Math.min(right, Math.max(left, (event.clientX - frame.left) / frame.width * box.width));
    const x = data.low + (at - left) / (right - left) * (data.high - data.low);
    const found = data.lines.map((points) => nearest(points, x));
    const there = found.reduce((best, one) => Math.abs(one[0] - x) < Math.abs(best[0] - x) ? one : best)[0];
    const screen = left + (there - data.low) / (data.high - data.low) * (right - left);
    cursor.setAttribute("x1", screen);
    cursor.setAttribute("x2", screen);
    cursor.style.display = "inline";
    found.forEach((one, number) => { values[number].textContent = shown(one[1], data.percent); });
    place.textContent = "at epoch " + Number(there.toPrecision(4));
  });
  plot.addEventListener("pointerleave", () => {
    cursor.style.display = "none";
    last.forEach((text, number) => { values[number].textContent = text; });
    place.textContent = "last";
  });
}
