// Draws the page's diagrams. Light in both themes: they stand on paper of their own (site.css).
window.mermaid.initialize({ startOnLoad: true, theme: "neutral", securityLevel: "strict", deterministicIds: true });
