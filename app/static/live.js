// Keeps a page fresh: fetches its live part again and again and replaces what changed. What the reader opened, scrolled,
// selected or focused stays. Without this script the page reloads itself.
"use strict";

(() => {
  const PATIENCE = 8000; // ms for one answer
  const SLOWEST = 15000; // ms between two tries while the connection is lost
  const connection = document.getElementById("connection");
  let lost = 0;
  let timer = 0;

  const live = () => document.getElementById("live");
  const parts = (root) => [...root.querySelectorAll("[data-part]")];
  const written = new WeakMap(); // part -> its HTML as the server wrote it

  function say(text, tone) {
    if (connection.textContent !== text) connection.textContent = text;
    connection.className = "connection " + tone;
  }

  // ---------------------------------------------------------------- what the reader did

  const FOCUSABLE = "a, summary, pre, [tabindex]";

  function remember(part) {
    const focused = part.contains(document.activeElement) ? document.activeElement : null;
    return {
      open: new Map([...part.querySelectorAll("details[id]")].map((item) => [item.id, item.open])),
      scroll: new Map([...part.querySelectorAll("[id]")].filter((item) => item.scrollTop || item.scrollLeft)
        .map((item) => [item.id, [item.scrollTop, item.scrollLeft]])),
      focus: focused ? [...part.querySelectorAll(FOCUSABLE)].indexOf(focused) : -1,
    };
  }

  function restore(part, state) {
    for (const item of part.querySelectorAll("details[id]")) {
      if (state.open.has(item.id)) item.open = state.open.get(item.id);
    }
    for (const item of part.querySelectorAll("[id]")) {
      const at = state.scroll.get(item.id);
      if (at) [item.scrollTop, item.scrollLeft] = at;
    }
    const focused = state.focus >= 0 ? part.querySelectorAll(FOCUSABLE)[state.focus] : null;
    if (focused) focused.focus({ preventScroll: true });
  }

  function selecting(part) {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && selection.containsNode(part, true);
  }

  // ---------------------------------------------------------------- replacing

  function swap(old, fresh) {
    const html = fresh.outerHTML;
    if (written.get(old) === html || selecting(old)) return;
    const state = remember(old);
    written.set(fresh, html);
    old.replaceWith(fresh);
    restore(fresh, state);
  }

  function update(fresh) {
    const now = live();
    const [ours, theirs] = [parts(now), parts(fresh)];
    const same = ours.length === theirs.length && ours.every((part, at) => part.id === theirs[at].id);
    if (same) {
      ours.forEach((part, at) => swap(part, theirs[at]));
      Object.assign(now.dataset, fresh.dataset);
    } else {
      theirs.forEach((part) => written.set(part, part.outerHTML));
      const [state, y] = [remember(now), window.scrollY];
      now.replaceWith(fresh);
      restore(fresh, state);
      window.scrollTo(window.scrollX, y);
    }
    document.title = fresh.dataset.title;
  }

  // ---------------------------------------------------------------- asking

  async function ask() {
    const answer = await fetch(live().dataset.source, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (answer.status === 404) return null;
    if (!answer.ok) throw new Error("status " + answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
    if (!fresh) throw new Error("not the page that was asked for");
    return document.adoptNode(fresh);
  }

  async function turn() {
    if (document.hidden) return; // goes on when somebody looks again
    let fresh;
    try {
      fresh = await ask();
    } catch {
      lost += 1;
      say("Connection lost, trying again", "lost");
      return again(Math.min(SLOWEST, 1500 * 1.6 ** Math.min(lost, 8)));
    }
    if (fresh === null) return say("This page is not there any more.", "lost");
    lost = 0;
    update(fresh);
    const wait = Number(fresh.dataset.refresh);
    if (!wait) return say("This job has ended; the page is complete.", "ended");
    say("Live", "fresh");
    again(wait);
  }

  function again(wait) {
    clearTimeout(timer);
    timer = setTimeout(turn, wait);
  }

  parts(live()).forEach((part) => written.set(part, part.outerHTML));
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && Number(live().dataset.refresh)) again(0);
  });
  say("Live", "fresh");
  again(Number(live().dataset.refresh));
})();
