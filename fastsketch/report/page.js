"use strict";
// Each toolbar sorts one gallery: a button sorts by its key, best first; pressed again, the other way round.
for (const toolbar of document.querySelectorAll(".toolbar")) {
  const list = document.getElementById(toolbar.dataset.sorts);
  const state = toolbar.querySelector(".state");
  const buttons = [...toolbar.querySelectorAll("button")];
  let current = null;
  let direction = "up";

  const sort = (button) => {
    const { key, best } = button.dataset;
    direction = button !== current ? best : direction === "up" ? "down" : "up";
    current = button;
    const sign = direction === "up" ? 1 : -1;
    // What has no score stands last, either way round.
    const value = (item) => item.hasAttribute(`data-${key}`) ? Number(item.getAttribute(`data-${key}`)) : sign * Infinity;
    const order = (item) => Number(item.dataset.order);
    const items = [...list.children].sort((a, b) => sign * (value(a) - value(b)) || order(a) - order(b));
    list.append(...items);
    for (const other of buttons) {
      other.setAttribute("aria-pressed", String(other === button));
      other.dataset.direction = other === button ? direction : "";
    }
    const first = key === "order" ? (direction === best ? "first to last" : "last to first")
      : direction === best ? "best first" : "worst first";
    state.textContent = `by ${button.textContent}, ${first}`;
  };
  for (const button of buttons) button.addEventListener("click", () => sort(button));
  sort(buttons[0]);
}
