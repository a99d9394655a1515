// Specs as YAML text. Reading is the server's work (base/yaml.c); strings are quoted wherever it could read something else.

const PLAIN = /^[A-Za-z][A-Za-z0-9_./-]*$/;
const WORDS = /^(y|n|yes|no|true|false|on|off|null|none|nan|inf)$/i;

function scalar(v) {
  if (typeof v !== "string") return JSON.stringify(v);
  return PLAIN.test(v) && !WORDS.test(v) ? v : JSON.stringify(v);
}

export function toYaml(value, indent = "") {
  if (Array.isArray(value)) {
    if (!value.length) return "[]";
    if (value.every(v => v === null || typeof v !== "object")) {
      const line = `[${value.map(scalar).join(", ")}]`;
      if (line.length < 80) return line;
    }
    return value.map(v => `\n${indent}- ` + toYaml(v, indent + "  ").replace(/^\n\s*/, "")).join("");
  }
  if (value !== null && typeof value === "object") {
    const keys = Object.keys(value);
    if (!keys.length) return "{}";
    return keys.map(k => {
      const text = toYaml(value[k], indent + "  ");
      return `\n${indent}${scalar(k)}:${text.startsWith("\n") ? "" : " "}${text}`;
    }).join("");
  }
  return scalar(value);
}

export const yamlText = value => toYaml(value).replace(/^\n/, "") + "\n";
