// Label maps over the picture that they belong to.

/** A label map as it was answered: what each pixel is, and the colours of its palette. */
export async function readMap(answer) {
  const bytes = Uint8Array.from(atob(answer.map), (c) => c.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const palette = paletteOf(bytes);
  return {
    canvas,
    width: bitmap.width,
    height: bitmap.height,
    pixels: context.getImageData(0, 0, bitmap.width, bitmap.height).data,
    classes: answer.labels.map((one) => ({ name: one.label, colour: palette(one.index) })),
  };
}

/** The colour of each number in a PNG's PLTE chunk; grey where it has none. */
function paletteOf(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 8; at < bytes.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (kind === "PLTE") {
      const colours = bytes.subarray(at + 8, at + 8 + length);
      return (index) => `rgb(${colours.slice(3 * index, 3 * index + 3).join(" ")})`;
    }
    at += length + 12;
  }
  return (index) => `rgb(${index} ${index} ${index})`;
}

/** Draw a map over its picture. */
export function drawOver(canvas, picture, map, opacity) {
  canvas.width = map.width;
  canvas.height = map.height;
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0, map.width, map.height);
  context.globalAlpha = opacity;
  context.drawImage(map.canvas, 0, 0);
  context.globalAlpha = 1;
}

/** Which share of the pixels has the same class in both maps. */
export function sameShare(one, other) {
  if (one.pixels.length !== other.pixels.length) return null;
  let same = 0;
  const a = new Uint32Array(one.pixels.buffer);
  const b = new Uint32Array(other.pixels.buffer);
  for (let at = 0; at < a.length; at++) same += a[at] === b[at] ? 1 : 0;
  return same / a.length;
}
