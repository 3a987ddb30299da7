// The Markdown of model cards: headings, paragraphs, lists, tables, code. Everything else is text.

import { h } from "./dom.js";

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) =>
    part.startsWith("`") && part.length > 2 ? h("code", {}, part.slice(1, -1)) : part.startsWith("**") && part.length > 4 ? h("strong", {}, part.slice(2, -2)) : part);
}

const cells = (row) => row.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((c) => c.trim().replaceAll("\\|", "|"));

export function markdown(text) {
  const rows = text.split("\n"), out = h("article", { class: "prose panel pad" });
  for (let i = 0; i < rows.length; ) {
    const row = rows[i], take = (test) => {
      const found = [];
      while (i < rows.length && test(rows[i])) found.push(rows[i++]);
      return found;
    };
    if (row.startsWith("```")) {
      i++;
      const code = take((r) => !r.startsWith("```"));
      i++;
      out.append(h("pre", { tabindex: 0 }, h("code", {}, code.join("\n"))));
    } else if (/^#{1,6} /.test(row)) {
      out.append(h("h3", {}, inline(row.replace(/^#+ /, ""))));
      i++;
    } else if (row.startsWith("|")) {
      const table = take((r) => r.startsWith("|")).filter((r) => !/^\|[\s:|-]+\|$/.test(r));
      const [first, ...rest] = table.map(cells), head = first.some(Boolean) ? first : null;
      out.append(h("div", { class: "table" }, h("table", {}, head && h("thead", {}, h("tr", {}, head.map((c) => h("th", { scope: "col" }, inline(c))))),
        h("tbody", {}, rest.map((r) => h("tr", {}, r.map((c) => h("td", {}, inline(c)))))))));
    } else if (/^[-*] /.test(row)) {
      out.append(h("ul", {}, take((r) => /^[-*] |^  /.test(r)).map((r) => h("li", {}, inline(r.replace(/^[-*] /, ""))))));
    } else if (row.trim()) {
      i++;
      out.append(h("p", {}, inline([row, ...take((r) => r.trim() && !/^(#|\||```|[-*] )/.test(r))].join(" "))));
    } else i++;
  }
  return out;
}
