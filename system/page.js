"use strict";
const byId = (id) => document.getElementById(id);

// Make an element. Text of files is only ever a text node, never HTML.
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Format a fraction; null is a value that does not exist, such as a share of no images.
const percent = (value, digits = 1) =>
  value === null ? "–" : `${(100 * value).toFixed(digits)}\u00a0%`;
