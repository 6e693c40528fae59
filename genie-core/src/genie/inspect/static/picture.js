// The drawing: visible units and edges as elements of the graph library, their colours, and moving about.

const dark = window.matchMedia('(prefers-color-scheme: dark)');
const LARGE = 400; // units above which tints are stronger and edges plain lines
const FADED = 0.13;

class Picture {
  constructor(container, on) {
    this.on = on;
    this.open = new Set([0]);
    this.mode = data.modes[0];
    this.selected = -1;
    this.wanted = null; // a predicate on units, or null: all
    this.theme();
    this.cy = cytoscape({
      container, elements: [], layout: { name: 'preset' }, style: this.style(), minZoom: 0.01, maxZoom: 4,
      autoungrabify: true, autounselectify: true, boxSelectionEnabled: false, pixelRatio: 'auto',
      hideEdgesOnViewport: nodes.length > 1500, textureOnViewport: nodes.length > 1500,
    });
    const unit = event => Number(event.target.id().slice(1));
    this.cy.on('tap', 'node', event => on.select(unit(event)));
    this.cy.on('tap', event => { if (event.target === this.cy) on.select(-1); });
    this.cy.on('dbltap', 'node', event => { if (isBox(unit(event))) this.toggle(unit(event) - firstBox); });
    this.cy.on('mouseover', 'node', event => on.hover(unit(event), event.renderedPosition));
    this.cy.on('mouseout', 'node', () => on.hover(-1));
    this.cy.on('viewport', () => on.hover(-1));
    dark.addEventListener('change', () => { this.theme(); this.cy.style(this.style()); this.recolor(); });
  }

  theme() {
    const style = getComputedStyle(document.documentElement);
    this.ink = Object.fromEntries(['paper', 'surface', 'line', 'text', 'quiet', 'accent', 'edge', 'box']
      .map(name => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  style() {
    const { text, quiet, accent, edge, box, line } = this.ink;
    const family = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif';
    return [
      { selector: 'node', style: {
        shape: 'round-rectangle', width: 'data(w)', height: 'data(h)', label: 'data(label)', 'font-family': family,
        'font-size': 13, color: text, 'text-valign': 'center', 'text-halign': 'center', 'text-wrap': 'wrap',
        'text-max-width': 'data(w)', 'line-height': 1.25, 'min-zoomed-font-size': 6, 'border-width': 1,
        'corner-radius': 6, 'z-index-compare': 'manual', 'z-index': 20, 'overlay-opacity': 0 } },
      { selector: '.leaf, .closed', style: {
        'background-color': 'data(fill)', 'border-color': 'data(edge)' } },
      { selector: '.input', style: { 'corner-radius': 20, 'border-style': 'dashed', 'border-width': 1.5 } },
      { selector: '.output', style: { 'border-style': 'double', 'border-width': 4 } },
      { selector: '.closed', style: { 'border-width': 1.5, 'font-size': CLOSED_FONT, 'corner-radius': 9 } },
      { selector: '.mixed', style: {
        'background-fill': 'linear-gradient', 'background-gradient-direction': 'to-right',
        'background-gradient-stop-colors': 'data(colors)', 'background-gradient-stop-positions': 'data(stops)' } },
      { selector: '.open', style: {
        'background-color': box, 'background-opacity': 0.75, 'border-color': line, 'corner-radius': 10,
        'z-index': 'data(depth)', 'text-valign': 'top', 'text-margin-y': 'data(sink)', 'font-size': 'data(font)',
        color: quiet, 'font-weight': 600, 'text-wrap': 'ellipsis', 'min-zoomed-font-size': 7 } },
      { selector: 'edge', style: {
        width: 1.3, 'line-color': edge, 'curve-style': 'unbundled-bezier', 'control-point-distances': 'data(bow)',
        'control-point-weights': 0.5, 'target-arrow-shape': 'triangle', 'target-arrow-color': edge, 'arrow-scale': 0.75,
        'z-index-compare': 'manual', 'z-index': 15, opacity: 0.75, 'overlay-opacity': 0, events: 'no' } },
      { selector: 'edge.plain', style: { 'curve-style': 'haystack', 'target-arrow-shape': 'none', opacity: 0.45 } },
      { selector: '.faded', style: { opacity: FADED } },
      { selector: 'edge.near', style: { 'line-color': accent, 'target-arrow-color': accent, width: 2.4, opacity: 1, 'z-index': 18 } },
      { selector: 'node.selected', style: { 'border-color': accent, 'border-width': 3, 'border-style': 'solid' } },
    ];
  }

  // Draw anew, for the boxes that are open. What is at the place of unit ``keep`` on the screen stays there.
  draw(keep = -1) {
    const before = keep >= 0 ? this.corner(keep) : null;
    this.at = geometry(this.open);
    this.stand = this.representatives();
    const { width, height, x, y } = this.at, elements = [];
    this.large = this.stand.reduce((sum, other, unit) => sum + (other === unit), 0) > LARGE; // then text is for a closer look
    for (let unit = 0; unit < unitCount; unit++) {
      if (unit === firstBox || this.stand[unit] !== unit) continue;
      elements.push({
        group: 'nodes', data: this.looks(unit), classes: this.classes(unit),
        position: { x: x[unit] + width[unit] / 2, y: y[unit] + height[unit] / 2 },
      });
    }
    const drawn = elements.length, seen = new Set();
    for (let i = 0; i < data.edges.length; i += 2) {
      const source = this.stand[data.edges[i]], target = this.stand[data.edges[i + 1]];
      const key = source * unitCount + target;
      if (source === target || seen.has(key)) continue;
      seen.add(key);
      elements.push({ group: 'edges', data: { id: `e${key}`, source: `u${source}`, target: `u${target}`, bow: this.bow(source, target) } });
    }
    if (elements.length > 2 * LARGE) for (let i = drawn; i < elements.length; i++) elements[i].classes = 'plain';
    this.cy.batch(() => {
      this.cy.elements().remove();
      this.cy.add(elements);
    });
    this.highlight();
    if (before) {
      const after = this.corner(keep);
      this.cy.panBy({ x: before.x - after.x, y: before.y - after.y });
    }
  }

  corner(unit) {
    const zoom = this.cy.zoom(), pan = this.cy.pan();
    return { x: this.at.x[unit] * zoom + pan.x, y: this.at.y[unit] * zoom + pan.y };
  }

  // Unit → the unit drawn for it: the outermost closed box around it, else itself.
  representatives() {
    const closed = new Int32Array(boxes.length).fill(-1), stand = new Int32Array(unitCount);
    boxes.forEach((box, number) => {
      const outer = box.parent < 0 ? -1 : closed[box.parent];
      closed[number] = outer >= 0 ? outer : this.open.has(number) ? -1 : number;
      stand[firstBox + number] = outer >= 0 ? firstBox + outer : firstBox + number;
    });
    for (let unit = 0; unit < firstBox; unit++) {
      const outer = closed[boxOf(unit)];
      stand[unit] = outer >= 0 ? firstBox + outer : unit;
    }
    return stand;
  }

  classes(unit) {
    if (isBox(unit)) return this.open.has(unit - firstBox) ? 'open' : this.shares(unit).length > 1 ? 'closed mixed' : 'closed';
    if (!isNode(unit)) return 'leaf input';
    return nodes[unit].makes.some(value => outputs.has(value)) ? 'leaf output' : 'leaf';
  }

  looks(unit) {
    const id = `u${unit}`, w = this.at.width[unit], h = this.at.height[unit];
    if (!isBox(unit)) return { id, w, h, label: leafLabel(unit).filter(Boolean).join('\n'), ...this.colors(unit) };
    const box = boxes[unit - firstBox];
    if (!this.open.has(unit - firstBox)) return { id, w, h, label: closedLabel(box).join('\n'), ...this.colors(unit) };
    const font = this.at.font[unit - firstBox];
    return { id, w, h, label: box.type ? `${box.name}  ${box.type}` : box.name, font, sink: font * 1.65, depth: Math.min(box.depth, 14) };
  }

  colors(unit) {
    const shares = this.shares(unit), [first] = shares;
    const color = wordColor(this.mode, first[0]);
    const made = { fill: this.tint(color), edge: this.tint(color, 0.85) };
    if (shares.length > 1) {
      const all = shares.reduce((sum, [, times]) => sum + times, 0), colors = [], stops = [];
      let at = 0;
      for (const [word, times] of shares) {
        const tint = this.tint(wordColor(this.mode, word));
        colors.push(tint, tint);
        stops.push(`${at}%`, `${at += 100 * times / all}%`);
      }
      Object.assign(made, { colors: colors.join(' '), stops: stops.join(' ') });
    }
    return made;
  }

  // [word, nodes] of the mode, the most frequent first.
  shares(unit) {
    if (!isBox(unit)) return [[wordOf(this.mode, unit), 1]];
    return [...boxes[unit - firstBox].words[data.modes.indexOf(this.mode)]].sort((a, b) => b[1] - a[1]);
  }

  tint(color, share = (dark.matches ? 0.5 : 0.36) + (this.large ? 0.24 : 0)) {
    const mixed = [1, 3, 5].map(i => {
      const own = parseInt(color.slice(i, i + 2), 16), under = parseInt(this.ink.surface.slice(i, i + 2), 16);
      return Math.round(under + (own - under) * share).toString(16).padStart(2, '0');
    });
    return `#${mixed.join('')}`;
  }

  // Edges that pass by other units go round them.
  bow(source, target) {
    const { width, height, x, y } = this.at;
    const down = y[target] - y[source] - height[source];
    const across = Math.abs(x[source] + width[source] / 2 - x[target] - width[target] / 2);
    if (down < GAP_Y * 1.6 || across > down) return 0;
    return Math.min(36 + down * 0.12, 150) * (source % 2 ? 1 : -1);
  }

  recolor(mode = this.mode) {
    this.mode = mode;
    this.cy.batch(() => this.cy.nodes('.leaf, .closed').forEach(drawn => {
      const unit = Number(drawn.id().slice(1));
      drawn.data(this.colors(unit));
      if (isBox(unit)) drawn.toggleClass('mixed', this.shares(unit).length > 1);
    }));
  }

  highlight() {
    const keep = this.wanted && new Set();
    if (keep) for (let unit = 0; unit < firstBox; unit++) if (this.wanted(unit)) keep.add(this.stand[unit]);
    const chosen = this.selected >= 0 ? `u${this.stand[this.selected]}` : '';
    this.cy.batch(() => {
      this.cy.elements('.near, .selected').removeClass('near selected');
      if (keep || this.fading) {
        this.cy.nodes('.leaf, .closed').forEach(drawn => drawn.toggleClass('faded', !!keep && !keep.has(Number(drawn.id().slice(1)))));
        this.cy.edges().toggleClass('faded', !!keep);
      }
      this.fading = !!keep;
      const node = chosen && this.cy.getElementById(chosen);
      if (node && node.nonempty()) {
        node.addClass('selected');
        node.connectedEdges().addClass('near');
      }
    });
  }

  select(unit) {
    this.selected = unit;
    this.highlight();
  }

  emphasize(wanted) {
    this.wanted = wanted;
    this.highlight();
  }

  // Bring a unit into view, opening the boxes around it.
  reveal(unit) {
    let closed = false;
    for (let box = boxOf(unit); box >= 0; box = boxes[box].parent) {
      if (!this.open.has(box)) closed = true;
      this.open.add(box);
    }
    if (closed) this.draw();
    const node = this.cy.getElementById(`u${this.stand[unit]}`), view = this.cy.extent(), box = node.boundingBox();
    const inside = box.x1 > view.x1 && box.x2 < view.x2 && box.y1 > view.y1 && box.y2 < view.y2;
    if (inside && this.cy.zoom() > 0.45) return;
    if (!isBox(unit) && this.cy.zoom() < 0.6) this.cy.zoom(0.9);
    this.cy.center(node);
  }

  toggle(number) {
    if (!number) return;
    if (!this.open.delete(number)) this.open.add(number);
    this.draw(firstBox + number);
    this.on.change();
  }

  // Open boxes, level by level, as far as all fits the window and what is closed can still be read.
  openLegibly() {
    const legible = open => {
      const { width, height } = geometry(open);
      return Math.min((this.cy.width() - 40) / width[firstBox], (this.cy.height() - 80) / height[firstBox]) >= 0.45;
    };
    for (let level = this.closed(); level.length; level = this.closed()) {
      const deeper = new Set([...this.open, ...level]);
      if (legible(deeper)) {
        this.open = deeper;
        continue;
      }
      // Not all of them: the first that can be, as an example of what is inside.
      const one = level.slice(0, 12).find(box => legible(new Set([...this.open, box])));
      if (one !== undefined) this.open.add(one);
      return;
    }
  }

  // The closed boxes that are drawn.
  closed(open = this.open) {
    const shown = visibleBoxes(open);
    return boxes.map((_, number) => number).filter(number => shown[number] && !open.has(number));
  }

  deeper() {
    this.closed().forEach(box => this.open.add(box));
    this.draw();
    this.fit();
  }

  shallower() {
    const depth = Math.max(0, ...[...this.open].map(box => boxes[box].depth));
    for (const box of [...this.open]) if (box && boxes[box].depth === depth) this.open.delete(box);
    this.draw();
    this.fit();
  }

  everything() {
    boxes.forEach((_, number) => this.open.add(number));
    this.draw();
    this.fit();
  }

  // Leave the tools their strip.
  fit() {
    this.cy.fit(undefined, 46);
    if (this.cy.zoom() > 1.15) {
      this.cy.zoom(1.15);
      this.cy.center();
    }
  }

  zoomBy(factor) {
    this.cy.zoom({ level: this.cy.zoom() * factor, renderedPosition: { x: this.cy.width() / 2, y: this.cy.height() / 2 } });
  }

  panBy(x, y) {
    this.cy.panBy({ x, y });
  }
}

function wordColor(mode, word) {
  return word < 0 ? data.unknown : mode.words[word][1];
}

function wordName(mode, word) {
  return word < 0 ? 'unknown' : mode.words[word][0];
}
