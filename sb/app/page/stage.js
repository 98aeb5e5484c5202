// The picture under the hand: zoom, moving about, and where in the picture a pointer is.

export class Stage {
  constructor(stage, sheet) {
    Object.assign(this, { stage, sheet, width: 1, height: 1, scale: 1, x: 0, y: 0, whole: true });
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), event);
    }, { passive: false });
    new ResizeObserver(() => this.whole && this.fit()).observe(stage);
  }

  show(width, height) {
    Object.assign(this, { width, height });
    this.sheet.hidden = false;
    this.fit();
  }

  fit() {
    const { clientWidth: w, clientHeight: h } = this.stage;
    this.scale = Math.min((w - 16) / this.width, (h - 16) / this.height);
    this.x = (w - this.width * this.scale) / 2;
    this.y = (h - this.height * this.scale) / 2;
    this.whole = true;
    this.place();
  }

  zoom(by, at) {
    const box = this.stage.getBoundingClientRect();
    const [px, py] = at ? [at.clientX - box.left, at.clientY - box.top] : [box.width / 2, box.height / 2];
    const scale = Math.min(Math.max(this.scale * by, 0.02), 64);
    this.x = px - ((px - this.x) * scale) / this.scale;
    this.y = py - ((py - this.y) * scale) / this.scale;
    this.scale = scale;
    this.whole = false;
    this.place();
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.whole = false;
    this.place();
  }

  place() {
    Object.assign(this.sheet.style, {
      width: `${this.width * this.scale}px`, height: `${this.height * this.scale}px`,
      transform: `translate(${this.x}px, ${this.y}px)`,
    });
    this.sheet.classList.toggle("close", this.scale > 2);
  }

  // Two fingers moved from one pair of places to another.
  pinch([a, b], [c, d]) {
    const apart = (p, q) => Math.hypot(p.clientX - q.clientX, p.clientY - q.clientY) || 1;
    const between = (p, q) => ({ clientX: (p.clientX + q.clientX) / 2, clientY: (p.clientY + q.clientY) / 2 });
    const [from, to] = [between(a, b), between(c, d)];
    this.zoom(apart(c, d) / apart(a, b), from);
    this.move(to.clientX - from.clientX, to.clientY - from.clientY);
  }

  // Picture coordinates of a pointer event.
  at(event) {
    const box = this.stage.getBoundingClientRect();
    return {
      x: (event.clientX - box.left - this.x) / this.scale,
      y: (event.clientY - box.top - this.y) / this.scale,
    };
  }
}
