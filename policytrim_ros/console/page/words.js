// Every text of the page in the language of its reader, from strings.<language>.json.

export const LANGUAGES = ["en", "zh"];
let table = {};
let answers = []; // [what is said in English, as a pattern with its gaps; the same in this language]

export async function speak(language) {
  const found = await Promise.all(["strings", "answers"].map((file) => fetch(`/page/${file}.${language}.json`)));
  if (!found.every((answer) => answer.ok)) return;
  table = await found[0].json();
  answers = Object.entries(await found[1].json()).map(([english, text]) => [pattern(english), text]);
  document.documentElement.lang = language === "zh" ? "zh-CN" : language;
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
}

// The text called `key`, with {name} replaced by values.name; the key itself when there is none.
export function say(key, values = {}) {
  return filled(table[key] ?? key, values);
}

const filled = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);

// What is said with something in the {gaps} of `english`; a gap that comes twice is the same twice.
function pattern(english) {
  const seen = new Set();
  const parts = [...english.matchAll(/([^{]+)|\{(\w+)\}/g)].map(([, word, gap]) => {
    if (word) return word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const again = seen.has(gap);
    seen.add(gap);
    return again ? `\\k<${gap}>` : `(?<${gap}>.+?)`;
  });
  return new RegExp(`^${parts.join("")}$`, "s");
}

// What a process said in English, in the language of the page; as it is where that is not known. What fills a gap is understood, too.
export function understood(answer) {
  for (const [english, text] of answers) {
    const found = english.exec(answer);
    if (found) return filled(text, Object.fromEntries(Object.entries(found.groups ?? {}).map(([gap, said]) => [gap, understood(said)])));
  }
  return answer;
}

export const knows = (key) => key in table;
