// The timeline: what is in view, pointing at it, moving about.

class Gantt extends Painting {
  constructor(canvas, on) {
    super();
    Object.assign(this, { canvas, on, pen: canvas.getContext('2d'), selected: -1, wanted: null, mark: null, top: 0, drawn: [] });
    this.lanes = lanesOf();
    this.rows = this.lanes.flatMap(lane => lane.rows.map(row => Object.assign(row, { lane, fill: new Map() })));
    this.laneOf = new Map(this.lanes.map(lane => [lane.name, lane]));
    const ends = this.rows.flatMap(({ series }) => [series.start[0], ...series.finish]);
    this.first = ends.reduce((a, b) => Math.min(a, b), 0);
    this.last = ends.reduce((a, b) => Math.max(a, b), 1);
    this.whole = Math.max(plan.makespan, plan.measured ? plan.measured.makespan : 0, 1); // less what the client did before and after
    this.path = this.crossings();
    this.theme();
    this.arrange();
    this.moves();
    new ResizeObserver(() => this.resize()).observe(canvas);
    dark.addEventListener('change', () => { this.theme(); this.draw(); });
  }

  // Where lanes and rows are, from the top.
  arrange(scale = 1) {
    let y = AXIS + 6;
    for (const lane of this.lanes) {
      lane.y = y;
      for (const row of lane.rows) {
        row.y = y;
        row.h = HEIGHT[row.kind] * (row.measured && row.kind === 'steps' ? 0.75 : 1) * scale;
        y += row.h + 2;
      }
      lane.h = y - lane.y;
      y += LANE_GAP * scale;
    }
    this.bottom = y;
  }

  // Few lanes are taller.
  settle() {
    this.arrange();
    this.arrange(Math.max(1, Math.min(1.7, (this.height - AXIS - 12) / (this.bottom - AXIS))));
  }

  // Where the critical path goes from lane to lane.
  crossings() {
    const chain = [...plan.steps.filter(step => step.critical).map(step => ({ at: step.start, from: step.finish, lane: this.laneOf.get(plan.devices[step.device].id) })),
      ...plan.transfers.filter(move => move.critical).map(move => ({ at: move.start, from: move.finish, lane: this.laneOf.get(wayName(move.source, move.target)) }))]
      .sort((a, b) => a.at - b.at || a.from - b.from);
    return chain.slice(1).map((next, i) => ({ at: next.at, from: chain[i].lane, to: next.lane })).filter(({ from, to }) => from !== to);
  }

  // --- what is in view ---------------------------------------------------------------------------

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const known = this.width, span = known ? (known - GUTTER) / this.scale : 0;
    Object.assign(this, { width, height });
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.settle();
    if (known) this.scale = (width - GUTTER) / span;
    else this.fit();
    if (this.pending !== undefined) this.reveal(this.pending);
    this.pan(0, 0);
  }

  get room() {
    return Math.max(1, this.width - GUTTER);
  }

  x(time) {
    return GUTTER + (time - this.from) * this.scale;
  }

  time(x) {
    return this.from + (x - GUTTER) / this.scale;
  }

  fit() {
    this.show(0, this.whole, 0.01);
  }

  show(from, to, margin = 0.15) {
    if (!this.width) return;
    const span = Math.max(to - from, 20) * (1 + 2 * margin);
    this.scale = Math.min(this.room / span, 5);
    this.from = (from + to) / 2 - this.room / this.scale / 2;
    this.pan(0, 0);
  }

  zoom(factor, x = GUTTER + this.room / 2) {
    const at = this.time(x), whole = this.room / ((this.last - this.first) * 1.02);
    this.scale = Math.max(whole, Math.min(this.scale * factor, 5));
    this.from = at - (x - GUTTER) / this.scale;
    this.pan(0, 0);
  }

  // Move what is seen by so many pixels, as far as there is something.
  pan(dx, dy) {
    const margin = (this.last - this.first) * 0.01;
    const least = this.first - margin, most = Math.max(least, this.last + margin - this.room / this.scale);
    this.from = Math.max(least, Math.min(this.from - dx / this.scale, most));
    this.top = Math.max(0, Math.min(this.top - dy, this.bottom - this.height));
    this.draw();
  }

  // --- pointing, moving --------------------------------------------------------------------------

  // What is at a point of the canvas, or null.
  at(x, y) {
    if (x < GUTTER || y < AXIS) return null;
    const found = this.drawn.find(({ row }) => y + this.top >= row.y - 1 && y + this.top <= row.y + row.h + 1);
    if (!found) return null;
    const { row, level, low, high } = found, near = 3 / this.scale, time = this.time(x);
    let best = null;
    const next = Math.max(low, search(level.count, group => level.finish(group) >= time - near));
    for (let group = next; group < Math.min(high, next + 8); group++) {
      const off = Math.max(level.start(group) - time, time - level.finish(group), 0);
      if (off <= near && (!best || off < best.off)) best = { row, level, group, off, id: level.ids(group)[0] };
      if (level.start(group) > time + near) break;
    }
    return best;
  }

  moves() {
    const { canvas } = this;
    let down = null;
    canvas.addEventListener('wheel', event => {
      event.preventDefault();
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.pan(-(event.deltaX || event.deltaY), 0);
      else this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0022)), Math.max(GUTTER, event.offsetX));
    }, { passive: false });
    canvas.addEventListener('pointerdown', event => {
      if (event.button) return;
      down = { x: event.offsetX, y: event.offsetY, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener('pointermove', event => {
      const { offsetX: x, offsetY: y } = event;
      if (!down) { this.on.hover(this.at(x, y), { x, y }); return; }
      if (!down.moved && Math.hypot(x - down.x, y - down.y) < 4) return;
      down.moved = true;
      this.on.hover(null);
      this.pan(event.movementX, event.movementY);
    });
    canvas.addEventListener('pointerup', event => {
      if (down && !down.moved) this.on.choose(this.at(event.offsetX, event.offsetY));
      down = null;
    });
    canvas.addEventListener('pointercancel', () => { down = null; });
    canvas.addEventListener('pointerleave', () => this.on.hover(null));
    canvas.addEventListener('dblclick', event => {
      const hit = this.at(event.offsetX, event.offsetY);
      if (hit) this.show(hit.level.start(hit.group), hit.level.finish(hit.group));
    });
  }

  // --- what others choose ------------------------------------------------------------------------

  recolor() {
    this.draw();
  }

  select(unit) {
    this.selected = unit;
    this.mark = null;
    this.draw();
  }

  choose(hit) {
    this.mark = hit;
    this.draw();
  }

  emphasize(wanted) {
    for (const row of this.rows) row.sums = wanted && row.kind === 'steps' ? row.series.sums(run => wanted(plan.steps[run].position)) : null;
    this.draw();
  }

  // Bring a node, or what is in a box, into view, large enough to be seen.
  reveal(unit) {
    this.pending = undefined;
    if (!this.width) { this.pending = unit; return; }
    const its = plan.steps.filter(step => !step.again && unit === step.position || isBox(unit) && within(step.position, unit - firstBox));
    if (!its.length) return;
    const from = its.reduce((least, step) => Math.min(least, step.start), Infinity), to = its.reduce((most, step) => Math.max(most, step.finish), 0);
    const seen = this.x(from) >= GUTTER && this.x(to) <= this.width && (to - from) * this.scale >= 5;
    if (!seen) this.show(from, to, isBox(unit) ? 0.15 : 12);
    const { y, h } = this.laneOf.get(plan.devices[its[0].device].id);
    if (y < this.top + AXIS || y + h > this.top + this.height) this.pan(0, this.top - (y - AXIS - 8));
  }
}

function within(position, box) {
  for (let at = nodes[position].box; at >= 0; at = boxes[at].parent) if (at === box) return true;
  return false;
}
