// The mask that a person draws: strokes and boxes on a canvas of the picture's size, with undo.

const KEPT = 30; // moments that can be undone,
const BYTES = 400e6; // as far as they take no more than this together

export class Mask {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.changed = changed;
    this.past = [];
    this.blank = true; // null where it has to be looked at
  }

  reset(width, height) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.past = [];
    this.blank = true;
    this.changed();
  }

  remember() {
    this.past.push(this.context.getImageData(0, 0, this.canvas.width, this.canvas.height));
    const most = Math.max(2, Math.min(KEPT, BYTES / (4 * this.canvas.width * this.canvas.height)));
    if (this.past.length > most) this.past.shift();
  }

  undo() {
    const before = this.past.pop();
    if (!before) return;
    this.context.putImageData(before, 0, 0);
    this.blank = null;
    this.changed();
  }

  clear() {
    this.remember();
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.blank = true;
    this.changed();
  }

  stroke(from, to, width, erase) {
    const c = this.context;
    c.save();
    c.globalCompositeOperation = erase ? "destination-out" : "source-over";
    c.strokeStyle = "#e0245e";
    c.lineWidth = width;
    c.lineCap = c.lineJoin = "round";
    c.beginPath();
    c.moveTo(from.x, from.y);
    c.lineTo(to.x, to.y + (from.x === to.x && from.y === to.y ? 0.01 : 0));
    c.stroke();
    c.restore();
    this.blank = erase ? null : false;
    if (!erase) this.changed(); // what is left after erasing is looked at when the stroke ends
  }

  // A box dragged from one corner to another; the picture of before it is drawn over each time.
  box(from, to) {
    const c = this.context;
    c.putImageData(this.past[this.past.length - 1], 0, 0);
    const [x, y] = [Math.min(from.x, to.x), Math.min(from.y, to.y)].map(Math.round);
    c.fillStyle = "#e0245e";
    const [width, height] = [Math.abs(to.x - from.x), Math.abs(to.y - from.y)].map(Math.round);
    c.fillRect(x, y, width, height);
    this.blank = width && height ? false : null;
    this.changed();
  }

  // A picture file: what is bright in it, or opaque where it has an alpha channel.
  async load(file) {
    const picture = await createImageBitmap(file);
    const { width, height } = this.canvas;
    if (picture.width !== width || picture.height !== height)
      throw new Error(`this mask is ${picture.width} x ${picture.height} px, the photo ${width} x ${height} px`);
    this.remember();
    const c = this.context;
    c.clearRect(0, 0, width, height);
    c.drawImage(picture, 0, 0);
    const shown = c.getImageData(0, 0, width, height);
    const p = shown.data;
    let opaque = true;
    for (let i = 3; i < p.length; i += 4) if (p[i] < 255) { opaque = false; break; }
    for (let i = 0; i < p.length; i += 4) {
      const marked = opaque ? 0.299 * p[i] + 0.587 * p[i + 1] + 0.114 * p[i + 2] > 127 : p[i + 3] > 127;
      [p[i], p[i + 1], p[i + 2], p[i + 3]] = marked ? [224, 36, 94, 255] : [0, 0, 0, 0];
    }
    c.putImageData(shown, 0, 0);
    this.blank = null;
    this.changed();
  }

  empty() {
    if (this.blank === null) {
      const p = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height).data;
      this.blank = true;
      for (let i = 3; i < p.length && this.blank; i += 4) this.blank = p[i] <= 127;
    }
    return this.blank;
  }

  // White on black, as a PNG.
  file() {
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [this.canvas.width, this.canvas.height];
    const c = copy.getContext("2d");
    c.drawImage(this.canvas, 0, 0);
    c.globalCompositeOperation = "source-in";
    c.fillStyle = "#fff";
    c.fillRect(0, 0, copy.width, copy.height);
    c.globalCompositeOperation = "destination-over";
    c.fillStyle = "#000";
    c.fillRect(0, 0, copy.width, copy.height);
    return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
  }
}
