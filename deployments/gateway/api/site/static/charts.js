// Small charts as SVG.

const SPACE = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A line of numbers, such as requests by day. */
export function sparkline(values, label) {
  const [width, height, top] = [140, 28, Math.max(1, ...values)];
  const step = values.length > 1 ? width / (values.length - 1) : width;
  const points = values.map((value, at) => `${(at * step).toFixed(1)},${(height - 2 - (value / top) * (height - 4)).toFixed(1)}`);
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "sparkline", role: "img", "aria-label": label },
    svg("polyline", { points: points.join(" "), class: "line" }));
}

/** Levels sold against delivered; `points` are {level, delivered, error, tiers}. The diagonal is what was promised. */
export function levelChart(model, points) {
  const [size, edge] = [320, 36];
  const low = Math.max(0, Math.floor(10 * Math.min(...points.map((p) => Math.min(p.level, p.delivered - p.error)), 0.9)) / 10);
  const at = (value) => edge + ((value - low) / (1 - low)) * (size - 2 * edge);
  const [x, y] = [at, (value) => size - at(value)];
  const chart = svg("svg", { viewBox: `0 0 ${size} ${size}`, class: "levels", role: "img",
    "aria-label": `Levels of ${model}: ${points.map((p) => `${p.level} sold, ${p.delivered} delivered`).join("; ")}` });
  for (let tick = Math.round(10 * low); tick <= 10; tick += 1) {
    const value = tick / 10;
    chart.append(
      svg("line", { x1: x(value), x2: x(value), y1: y(low), y2: y(1), class: "rule" }),
      svg("line", { x1: x(low), x2: x(1), y1: y(value), y2: y(value), class: "rule" }),
      svg("text", { x: x(value), y: size - edge + 14, "text-anchor": "middle" }, value.toFixed(1)),
      svg("text", { x: edge - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(1)),
    );
  }
  chart.append(svg("line", { x1: x(low), y1: y(low), x2: x(1), y2: y(1), class: "promise" }));
  for (const point of points) {
    const [px, py] = [x(point.level), y(point.delivered)];
    const [above, below] = [y(Math.min(1, point.delivered + point.error)), y(Math.max(low, point.delivered - point.error))];
    chart.append(
      svg("line", { x1: px, x2: px, y1: above, y2: below, class: "error" }),
      svg("circle", { cx: px, cy: py, r: 4, class: point.state === "drifted" ? "point drifted" : "point" }),
    );
    if (point.tiers.length)
      chart.append(svg("text", { x: px - 7, y: py - 7, "text-anchor": "end", class: "tier" }, point.tiers.join(", ")));
  }
  chart.append(
    svg("text", { x: size / 2, y: size - 4, "text-anchor": "middle" }, "sold"),
    svg("text", { x: 10, y: size / 2, transform: `rotate(-90 10 ${size / 2})`, "text-anchor": "middle" }, "delivered"),
  );
  return chart;
}
