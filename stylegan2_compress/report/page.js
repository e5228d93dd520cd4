'use strict';
// Shows the values of curves at the pointer, the finger or the arrow keys. The page is complete without it.
(() => {
  const {frame, charts} = JSON.parse(document.getElementById('chart-data').textContent);

  const make = (parent, tag, className, text = '') => {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    return parent.appendChild(node);
  };
  const draw = (parent, tag, attributes) => {
    const node = document.createElementNS(document.querySelector('svg').namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return parent.appendChild(node);
  };
  const across = (chart, kimg) => {
    const [low, high] = chart.across;
    return frame.left + (frame.right - frame.left) * (kimg - low) / (high - low);
  };
  const up = (chart, value) => {
    const scale = chart.logarithmic ? Math.log : (number) => number;
    const [low, high] = chart.up.map(scale);
    return frame.bottom - (frame.bottom - frame.top) * (scale(value) - low) / (high - low);
  };
  const nearest = (points, kimg) => points.reduce((best, point) => (
    Math.abs(point[0] - kimg) < Math.abs(best[0] - kimg) ? point : best));

  document.querySelectorAll('.plot').forEach((plot, index) => {
    const chart = charts[index];
    const svg = plot.querySelector('svg');
    const hit = make(plot, 'div', 'hit');  // Covers the picture, whose title the browser would show as well.
    const tip = make(plot, 'div', 'tip');
    const stops = [...new Set(chart.lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
    let marks = [];
    let stop = stops.length - 1;
    tip.hidden = true;
    tip.setAttribute('role', 'status');

    const hide = () => {
      tip.hidden = true;
      marks.forEach((mark) => mark.remove());
      marks = [];
    };
    const show = (kimg) => {
      hide();
      const x = across(chart, kimg);
      marks.push(draw(svg, 'line', {class: 'cursor', x1: x, x2: x, y1: frame.top, y2: frame.bottom}));
      tip.textContent = '';
      make(tip, 'div', '', `${Number(kimg.toPrecision(9))} kimg`);
      for (const line of chart.lines) {
        const point = nearest(line.points, kimg);
        if (kimg < line.points[0][0] || kimg > line.points.at(-1)[0]) continue;
        const row = make(tip, 'div', '');  // Seen, colour and dashes tell whose value it is; heard, the label does.
        row.setAttribute('aria-label', line.label);
        const sample = draw(row, 'svg', {class: 'sample', viewBox: '0 0 24 10'});
        const stroke = `curve color${line.color} dashes${line.dashes}`;
        draw(sample, 'line', {class: stroke, x1: 1, x2: 23, y1: 5, y2: 5});
        const away = point[0] === kimg ? '' : ` at ${Number(point[0].toPrecision(9))}`;
        make(row, 'span', '', `${Number(point[1].toPrecision(6))}${away}`.replace('-', '\u2212'));
        marks.push(draw(svg, 'circle', {
          class: `dot color${line.color}`, cx: across(chart, point[0]), cy: up(chart, point[1]), r: 4}));
      }
      const left = x < (frame.left + frame.right) / 2;  // The box stays out of the pointer's half.
      tip.style.left = left ? 'auto' : `${100 * frame.left / frame.width + 1}%`;
      tip.style.right = left ? `${100 - 100 * frame.right / frame.width + 1}%` : 'auto';
      tip.hidden = false;
    };
    const point = (event) => {
      const box = hit.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * frame.width;
      const [low, high] = chart.across;
      const kimg = low + (high - low) * (x - frame.left) / (frame.right - frame.left);
      stop = stops.reduce((best, value, i) => (
        Math.abs(value - kimg) < Math.abs(stops[best] - kimg) ? i : best), 0);
      show(stops[stop]);
    };
    hit.addEventListener('pointermove', point);
    hit.addEventListener('pointerdown', point);
    hit.addEventListener('pointerleave', hide);
    svg.addEventListener('focus', () => { if (svg.matches(':focus-visible')) show(stops[stop]); });
    svg.addEventListener('blur', hide);
    svg.addEventListener('keydown', (event) => {
      const steps = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (steps) {
        stop = Math.min(Math.max(stop + steps, 0), stops.length - 1);
        show(stops[stop]);
        event.preventDefault();
      } else if (event.key === 'Escape') {
        hide();
      }
    });
  });
})();
