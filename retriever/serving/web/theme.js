// Light or dark, before anything is drawn: no module, so that the page never shows the other one first.
(() => {
  const names = { auto: "auto", light: "light", dark: "dark" };
  const order = Object.keys(names);

  function kept() {
    try {
      return localStorage.getItem("retriever-theme");
    } catch {
      return null; // a browser may forbid it
    }
  }

  function show(theme) {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${names[theme]}`;
  }

  let theme = order.includes(kept()) ? kept() : "auto";
  show(theme);
  document.addEventListener("DOMContentLoaded", () => {
    show(theme);
    document.getElementById("theme").addEventListener("click", () => {
      theme = order[(order.indexOf(theme) + 1) % order.length];
      try {
        localStorage.setItem("retriever-theme", theme);
      } catch {
        // then it holds for this page alone
      }
      show(theme);
    });
  });
})();
