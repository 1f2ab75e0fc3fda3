//! The reference of the configuration, from its schema: for the documentation and as a manual page.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;

/// A map of the document and its fields.
struct Section {
    /// Where it stands: `services[].healthCheck`.
    path: String,
    text: String,
    fields: Vec<Field>,
}

/// A field of a map.
struct Field {
    name: String,
    required: bool,
    /// What may be written there.
    kind: String,
    text: String,
    /// Words that it may be, with what they mean.
    choices: Vec<(String, String)>,
}

/// The document's maps, each once, in the order in which a reader meets them.
fn sections() -> Vec<Section> {
    let schema = fairway_config::schema();
    let mut walk = Walk { defs: &schema["$defs"], seen: BTreeSet::new(), sections: Vec::new() };
    walk.map("", &schema);
    walk.sections
}

struct Walk<'s> {
    defs: &'s Value,
    seen: BTreeSet<&'s str>,
    sections: Vec<Section>,
}

impl<'s> Walk<'s> {
    fn map(&mut self, path: &str, schema: &'s Value) {
        let Some(properties) = schema["properties"].as_object() else { return };
        let required: BTreeSet<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let fields = properties.iter().map(|(name, value)| Field {
            name: name.clone(),
            required: required.contains(name.as_str()),
            kind: self.kind(value),
            text: self.text(value),
            choices: self.choices(value),
        });
        let section =
            Section { path: path.to_owned(), text: text_of(schema), fields: fields.collect() };
        self.sections.push(section);
        for (name, value) in properties {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            self.below(&path, value);
        }
    }

    /// The maps that may stand in a place.
    fn below(&mut self, path: &str, schema: &'s Value) {
        if let Some(name) = reference(schema) {
            let target = &self.defs[name];
            let is_map = target["properties"].is_object();
            if !is_map || self.seen.insert(name) {
                self.below(path, target);
            }
            return;
        }
        if schema["properties"].is_object() {
            return self.map(path, schema);
        }
        if schema["items"].is_object() {
            return self.below(&format!("{path}[]"), &schema["items"]);
        }
        for choice in choices_of(schema) {
            self.below(path, choice);
        }
    }

    fn kind(&self, schema: &'s Value) -> String {
        if let Some(name) = reference(schema) {
            let target = &self.defs[name];
            return match target["properties"].is_object() {
                true => "map".into(),
                false => self.kind(target),
            };
        }
        if schema["items"].is_object() {
            return format!("list of {}", plural(&self.kind(&schema["items"])));
        }
        let choices: BTreeSet<String> = choices_of(schema)
            .filter(|choice| choice["type"] != "null" && choice["const"].is_null())
            .map(|choice| self.kind(choice))
            .collect();
        if !choices.is_empty() {
            return choices.into_iter().collect::<Vec<_>>().join(" or ");
        }
        let words = schema["enum"].is_array() || choices_of(schema).next().is_some();
        let kinds: Vec<&str> = match &schema["type"] {
            Value::String(kind) => vec![kind],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        match kinds.iter().find(|kind| **kind != "null") {
            _ if words => "word".into(),
            Some(&"object") => "map".into(),
            Some(&"boolean") => "true or false".into(),
            Some(&"integer" | &"number") => "number".into(),
            Some(_) if schema["pattern"].is_string() && kinds.contains(&"integer") => {
                "number".into()
            }
            _ => "text".into(),
        }
    }

    fn text(&self, schema: &'s Value) -> String {
        let own = text_of(schema);
        match reference(schema) {
            Some(name) if own.is_empty() => text_of(&self.defs[name]),
            _ => own,
        }
    }

    fn choices(&self, schema: &'s Value) -> Vec<(String, String)> {
        if let Some(name) = reference(schema) {
            return self.choices(&self.defs[name]);
        }
        let plain = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let plain = plain.map(|word| (word.to_owned(), String::new()));
        let told = choices_of(schema).flat_map(|choice| match choice["const"].as_str() {
            Some(word) => vec![(word.to_owned(), text_of(choice))],
            None => self.choices(choice),
        });
        plain.chain(told).collect()
    }
}

fn reference(schema: &Value) -> Option<&str> {
    let name = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/"));
    name.or_else(|| {
        // A field that may be left out.
        let mut choices = choices_of(schema).filter(|choice| choice["type"] != "null");
        let only = choices.next().filter(|_| choices.next().is_none())?;
        only["$ref"].as_str()?.strip_prefix("#/$defs/")
    })
}

fn choices_of(schema: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["anyOf", "oneOf"].map(|key| schema[key].as_array());
    lists.into_iter().flatten().flatten()
}

fn text_of(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ")
}

fn plural(kind: &str) -> String {
    match kind {
        "text" => "texts".into(),
        "true or false" => kind.into(),
        _ => kind.split(" or ").map(|kind| format!("{kind}s")).collect::<Vec<_>>().join(" or "),
    }
}

/// The reference for the documentation.
pub(super) fn markdown() -> String {
    let mut out = String::from(
        "# The configuration, field by field\n\nMade by `fairway reference` from the schema that also checks \
         documents and serves editors (`fairway schema`).\nTimes are written `300ms`, `2s`, `5m`, `1h`, sizes \
         `64KiB`; `[]` stands for each entry of a list.\n",
    );
    for Section { path, text, fields } in sections() {
        let title = if path.is_empty() { "The document".into() } else { format!("`{path}`") };
        // Writing into a String cannot fail.
        let _ = write!(out, "\n## {title}\n\n");
        if !text.is_empty() {
            let _ = write!(out, "{text}\n\n");
        }
        let _ = writeln!(out, "| field | what | |\n| --- | --- | --- |");
        for Field { name, required, kind, text, choices } in fields {
            let mark = if required { ", required" } else { "" };
            let words = |(word, text): &(String, String)| match text.is_empty() {
                true => format!("`{word}`"),
                false => format!("`{word}`: {text}"),
            };
            let choices: Vec<String> = choices.iter().map(words).collect();
            let rest = if choices.is_empty() {
                String::new()
            } else {
                format!("<br>{}", choices.join("<br>"))
            };
            let cell = format!("{text}{rest}").replace('|', "\\|");
            let _ = writeln!(out, "| `{name}` | {kind}{mark} | {cell} |");
        }
    }
    out
}

/// The reference as a manual page, fairway.yaml(5).
pub(super) fn manual() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut out = format!(
        ".TH fairway.yaml 5 \"\" \"fairway {version}\" \"File formats\"\n.SH NAME\nfairway.yaml \\- \
         configuration of the load balancer Fairway\n.SH DESCRIPTION\n{}\n.SH FIELDS\n",
        roff(
            "YAML, read at the start and whenever it changes. Times are written 300ms, 2s, 5m, 1h, sizes \
             64KiB; [] stands for each entry of a list."
        )
    );
    for Section { path, text, fields } in sections() {
        let title = if path.is_empty() { "The document" } else { &path };
        // Writing into a String cannot fail.
        let _ = write!(out, ".SS \"{}\"\n{}\n", roff(title), roff(&text));
        for Field { name, required, kind, text, choices } in fields {
            let mark = if required { ", required" } else { "" };
            let _ = write!(out, ".TP\n.B {}\n({kind}{mark}) {}\n", roff(&name), roff(&text));
            for (word, text) in choices {
                let _ = write!(out, ".br\n.I {}\n{}\n", roff(&word), roff(&text));
            }
        }
    }
    out + ".SH SEE ALSO\n.BR fairway (1)\n"
}

/// Text as roff has it: nothing of it is a request.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('`', "");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

/// What a person knows of a map at once.
#[cfg(test)]
fn fields_of(path: &str) -> std::collections::BTreeMap<String, String> {
    let section = sections().into_iter().find(|section| section.path == path);
    let fields = section.into_iter().flat_map(|section| section.fields);
    fields.map(|field| (field.name, field.kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_is_told_of_once_with_its_fields() {
        let sections = sections();
        let paths: BTreeSet<&str> = sections.iter().map(|it| it.path.as_str()).collect();
        assert_eq!(paths.len(), sections.len());
        for path in ["", "services[]", "services[].healthCheck", "announce.bgp.peers[]"] {
            assert!(paths.contains(path), "{path} of {paths:?}");
        }
        let service = fields_of("services[]");
        assert_eq!(service["addresses"], "list of texts");
        assert_eq!(service["mode"], "word");
        assert_eq!(service["healthCheck"], "map");
        let untold = sections.iter().flat_map(|section| {
            let fields = section.fields.iter().filter(|field| field.text.is_empty());
            fields.map(|field| format!("{}.{}", section.path, field.name))
        });
        assert_eq!(untold.collect::<Vec<_>>(), [""; 0], "fields without a word");
    }

    #[test]
    fn the_documentation_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == markdown(), "`fairway reference > docs/configuration.md` makes it anew");
    }
}
