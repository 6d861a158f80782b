// Not a module: it runs before the first paint, so that the page never flashes in the other theme.
try {
  const chosen = localStorage.getItem("residuum.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is switched off: the system's theme it is.
}
