'use strict';
// What the page is made of: its data, numbers and tokens as text, tables, bars and tips. All text goes in through
// textContent, so no token is ever read as HTML.

const data = JSON.parse(document.getElementById('explanation').textContent);
const report = document.getElementById('report');
const answer = data.attribution.answer;
const tokens = data.prompt.tokens;
const last = tokens.length - 1;

// ---- Numbers and tokens as text ----

const isNumber = (x) => typeof x === 'number' && Number.isFinite(x);
const exact = (x) => (isNumber(x) ? String(x) : 'n/a');  // As in the JSON.
const grouped = (n) => (isNumber(n) ? String(n).replace(/\B(?=(\d{3})+$)/g, ',') : 'n/a');

function percent(share) {
  if (!isNumber(share)) return 'n/a';
  const value = share * 100;
  let text;
  if (value === 0)
    text = '0';
  else if (value > 0 && value < 0.01)
    text = '<0.01';
  else if (value > 99.99 && value < 100)
    text = '>99.99';
  else if (value < 0.995)  // The limits are where rounding gives one digit more.
    text = value.toFixed(2);
  else if (value < 9.95)
    text = value.toFixed(1);
  else if (value < 99.5 || value >= 100)
    text = value.toFixed(0);
  else
    text = value.toFixed(2);
  return text + '\u00a0%';
}

function signed(value, decimals = 2) {
  if (!isNumber(value)) return 'n/a';
  if (value === 0) return '0';
  const text = Math.abs(value).toFixed(decimals);
  return (value < 0 && /[1-9]/.test(text) ? '−' : '+') + text;
}

// What has no shape of its own is named by its code; a space is "·" unless the token stands in a sentence.
function visible(token, space = '·') {
  if (token === '') return '(empty)';
  let text = '';
  for (const c of token) {
    const code = c.codePointAt(0);
    if (c === ' ')
      text += space;
    else if (c === '\n')
      text += '⏎';
    else if (c === '\t')
      text += '⇥';
    else if (code < 32)
      text += String.fromCodePoint(0x2400 + code);
    else if (code === 127)
      text += '␡';
    else if (
        /[\p{C}\p{Z}]/u.test(c) ||
        (/\p{Default_Ignorable_Code_Point}/u.test(c) && !(text && /[\ufe0e\ufe0f]/.test(c)))) {
      text += `⟨U+${code.toString(16).toUpperCase().padStart(4, '0')}⟩`;
    } else
      text += (text === '' && /\p{M}/u.test(c) ? '◌' : '') + c;
  }
  return text;
}
// Where spaces are all there is, or there are several in a row, they stay visible in a sentence too.
const spacesCount = (token) => token.includes('  ') || !/[^ ]/.test(token);
const quoted = (token) => `“${token === '' ? '' : visible(token, spacesCount(token) ? '·' : '\u00a0')}”`;
const quotedText = (text) => `“${text === '' ? '' : visible(text, ' ')}”`;
const afterLayer = (i) =>
    (data.lens.layers[i] === 'embed' ? 'after the embedding' : `after block ${data.lens.layers[i]}`);
const place = (position) => quoted(tokens[position] ?? '');

function spans(numbers) {  // [0, 1, 2, 5] -> "0–2, 5"
  const parts = [];
  for (const n of numbers) {
    const open = parts.at(-1);
    if (open && open[1] === n - 1)
      open[1] = n;
    else
      parts.push([n, n]);
  }
  return parts.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(', ');
}

// ---- Building blocks ----

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const p = (...children) => el('p', {}, ...children);
const em = (text) => el('strong', {}, text);
const tokenSpan = (token) => el('bdi', {class: 'token'}, visible(token));

function section(id, title, ...children) {
  const heading = el('h2', {id: `${id}-title`}, title);
  report.append(el('section', {id, 'aria-labelledby': heading.id}, heading, ...children));
}

function scrollBox(label, child, toEnd = false) {
  const box = el('div', {class: 'scroll', role: 'region', 'aria-label': label, tabindex: '0'}, child);
  if (toEnd)
    requestAnimationFrame(() => {
      box.scrollLeft = box.scrollWidth;
    });
  return box;
}

function legend(kind, ...labels) {
  const ramp = el('span', {class: `ramp ${kind === 'share' ? 'share' : 'signed-ramp'}`});
  const [low, ...others] = labels.map((text) => el('span', {}, text));
  return el('div', {class: 'legend'}, low, ramp, ...others);
}

// One cell of a heat table: `value` from -1 to 1 picks the colour, null or undefined is drawn as missing.
function paint(cell, value, scale) {
  if (!isNumber(value)) {
    cell.className = 'missing';
    return;
  }
  const size = Math.min(Math.abs(value), 1);
  cell.className = scale === 'share' ? 'share' : value < 0 ? 'minus' : 'plus';
  cell.style.setProperty('--v', size.toFixed(3));
}

// columns: nodes for the heads; rows: labels; cell(r, c): {value, content, hit}; tip(r, c): text with the exact values.
function heatTable({kind, label, corner, columns, rows, scale, cell, tip}) {
  const head = el('tr', {}, el('th', {scope: 'col'}, corner));
  for (const column of columns) head.append(column);
  const body = el('tbody');
  rows.forEach((row, r) => {
    const line = el('tr', {}, el('th', {scope: 'row'}, row));
    columns.forEach((_, c) => {
      const {value, content, hit} = cell(r, c);
      const td = el('td', {tabindex: r === 0 && c === 0 ? '0' : '-1'}, content);
      paint(td, value, scale);
      if (hit) td.classList.add('hit');
      line.append(td);
    });
    body.append(line);
  });
  const table = el('table', {class: `heat ${kind}`, role: 'grid', 'aria-label': label}, el('thead', {}, head), body);
  table.tipOf = (td) => tip(td.parentNode.sectionRowIndex, td.cellIndex - 1);
  table.addEventListener('keydown', moveInTable);
  return table;
}

function tokenHead(position, ...more) {
  return el('th', {scope: 'col'}, el('small', {}, String(position)), tokenSpan(tokens[position]), ...more);
}

// One stop of the tab key per table; the arrows move inside.
function moveInTable(event) {
  const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  const td = event.target.closest('td');
  if (!step || !td) return;
  event.preventDefault();
  const next = td.closest('tbody').rows[td.parentNode.sectionRowIndex + step[0]]?.cells[td.cellIndex + step[1]];
  if (!next || next.tagName !== 'TD') return;
  td.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

const tipBox = document.getElementById('tip');
function showTip(target) {
  const holder = target instanceof Element ? target.closest('td, [data-tip]') : null;
  const text = holder?.dataset.tip ?? holder?.closest('table')?.tipOf?.(holder);
  tipBox.hidden = !text;
  if (!text) return;
  tipBox.textContent = text;
  const at = holder.getBoundingClientRect();
  const size = tipBox.getBoundingClientRect();
  const above = at.top - size.height - 6;
  tipBox.style.left =
      `${Math.max(6, Math.min(at.left + at.width / 2 - size.width / 2, innerWidth - size.width - 6))}px`;
  tipBox.style.top = `${above > 4 ? above : at.bottom + 6}px`;
  if (holder === document.activeElement) holder.setAttribute('aria-describedby', 'tip');
}
document.addEventListener('mouseover', (event) => showTip(event.target));
document.addEventListener('focusin', (event) => showTip(event.target));
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') tipBox.hidden = true;
});
document.addEventListener('scroll', () => {
  tipBox.hidden = true;
}, true);

function toggleRows(table, shown, noun) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length <= shown) return null;
  const button = el('button', {type: 'button', 'aria-expanded': 'false'});
  const apply = (all) => {
    rows.forEach((row, i) => {
      row.hidden = !all && i >= shown;
    });
    button.textContent = all ? `Show the ${shown} largest` : `Show all ${rows.length} ${noun}`;
    button.setAttribute('aria-expanded', String(all));
  };
  button.addEventListener('click', () => apply(button.getAttribute('aria-expanded') === 'false'));
  apply(false);
  return button;
}

function signedBar(value, largest) {
  const width = isNumber(value) && largest > 0 ? (Math.abs(value) / largest) * 100 : 0;
  const fill = el('span', {class: `bar ${value < 0 ? 'minus' : 'plus'}`});
  fill.style.width = `${width}%`;
  const sides = value < 0 ? [el('span', {}, fill), el('span')] : [el('span'), el('span', {}, fill)];
  return el('div', {class: 'signed', 'aria-hidden': 'true'}, ...sides);
}

const size = (x) => (isNumber(x) ? Math.abs(x) : -1);
const largestOf = (values) => values.reduce((most, x) => Math.max(most, size(x)), 0);
