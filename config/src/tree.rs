//! A YAML document as a tree that knows its places.
//!
//! Aliases are resolved by copying, up to a bound; tags carry no meaning here and are refused.

use std::collections::HashMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span};

use crate::Place;

/// Nodes of one document, aliases counted each time: far above any real configuration.
const MOST_NODES: usize = 5_000_000;
/// Levels of nesting.
const DEEPEST: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// Number of the node in the document, from 0.
    pub(crate) id: u32,
    pub(crate) place: Place,
    pub(crate) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Scalar { text: Box<str>, quoted: bool },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub(crate) text: Box<str>,
    pub(crate) place: Place,
}

impl Node {
    /// The value under `key` of a map.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| *k.text == *key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// What it is, for errors.
    pub(crate) fn kind(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Scalar { text, .. } => format!("`{text}`"),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a map".into(),
        }
    }
}

/// The first thing that keeps a text from being YAML.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) place: Place,
    pub(crate) message: String,
}

/// Parses a text of one document; an empty one is null.
pub(crate) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut documents = parse_all(text)?;
    if let Some(second) = documents.get(1) {
        return error(
            second.place,
            "a second document (`---`) in one file; put it in a file of its own and name its folder \
             under `sources`",
        );
    }
    let nothing = || Node { id: 0, place: Place { line: 1, column: 1 }, value: Value::Null };
    Ok(documents.pop().unwrap_or_else(nothing))
}

/// Parses a text of any number of documents.
pub(crate) fn parse_all(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut options = Options::default();
    options.emit_comments = false;
    let mut builder = Builder {
        events: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        nodes: 0,
    };
    builder.documents()
}

struct Builder<'a> {
    events: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

fn place(span: &Span) -> Place {
    Place { line: span.start.line() as u32, column: span.start.col() as u32 + 1 }
}

fn error<T>(place: Place, message: impl Into<String>) -> Result<T, SyntaxError> {
    Err(SyntaxError { place, message: message.into() })
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), SyntaxError> {
        match self.events.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(scan)) => {
                let marker = scan.marker();
                let place = Place { line: marker.line() as u32, column: marker.col() as u32 + 1 };
                error(place, format!("not YAML: {}; look here and just before", scan.info()))
            }
            None => error(Place::default(), "not YAML: the document ends early"),
        }
    }

    fn documents(&mut self) -> Result<Vec<Node>, SyntaxError> {
        let mut roots = Vec::new();
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) => {
                    let (event, span) = self.next()?;
                    roots.push(self.node(event, &span, 0)?);
                    // Documents share nothing.
                    self.anchors.clear();
                }
                Event::StreamEnd => return Ok(roots),
                _ => return error(place(&span), "not YAML: stray content"),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Node, SyntaxError> {
        let place = place(span);
        if depth > DEEPEST {
            return error(place, "nested too deeply");
        }
        let id = self.count(place, 1)?;
        if let Some(tag) = event.tag() {
            return error(place, format!("tags are not used here; remove `{}`", tag.original()));
        }
        let anchor = event.anchor_id().unwrap_or(0);
        let value = match event {
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                if plain && matches!(&*text, "" | "~" | "null") {
                    Value::Null
                } else {
                    Value::Scalar { text: text.into(), quoted: !plain }
                }
            }
            Event::SequenceStart(..) => self.list(depth)?,
            Event::MappingStart(..) => self.map(depth)?,
            Event::Alias(anchor) => return self.alias(anchor, place),
            _ => return error(place, "not YAML: a value was expected"),
        };
        let node = Node { id, place, value };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::List(items));
            }
            items.push(self.node(event, &span, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Value::Map(entries));
            }
            let key = match event {
                Event::Scalar(text, ..) => Key { text: text.into(), place: place(&span) },
                _ => return error(place(&span), "a key must be a word"),
            };
            if let Some((first, _)) = entries.iter().find(|(k, _)| k.text == key.text) {
                let line = first.place.line;
                return error(
                    key.place,
                    format!("`{}` is here twice; the first is on line {line}", key.text),
                );
            }
            let (event, span) = self.next()?;
            let value = self.node(event, &span, depth + 1)?;
            entries.push((key, value));
        }
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Result<Node, SyntaxError> {
        let Some(mut node) = self.anchors.get(&anchor).cloned() else {
            return error(place, "an alias to a value that is not finished");
        };
        self.renumber(&mut node, place)?;
        Ok(node)
    }

    /// Copies are nodes of their own.
    fn renumber(&mut self, node: &mut Node, place: Place) -> Result<(), SyntaxError> {
        node.id = self.count(place, 1)?;
        match &mut node.value {
            Value::List(items) => items.iter_mut().try_for_each(|n| self.renumber(n, place)),
            Value::Map(entries) => {
                entries.iter_mut().try_for_each(|(_, n)| self.renumber(n, place))
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, place: Place, nodes: usize) -> Result<u32, SyntaxError> {
        let id = self.nodes as u32;
        self.nodes += nodes;
        if self.nodes > MOST_NODES {
            return error(place, "the document is too large, or its aliases expand without end");
        }
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        let error = parse(text).unwrap_err();
        format!("{}:{}: {}", error.place.line, error.place.column, error.message)
    }

    #[test]
    fn places_are_lines_and_columns_from_one() {
        let root = parse("a: 1\nb:\n  - x\n  - y: 2\n").unwrap();
        let list = root.get("b").unwrap();
        let Value::List(items) = &list.value else { panic!("a list") };
        assert_eq!(items[0].place, Place { line: 3, column: 5 });
        assert_eq!(items[1].get("y").unwrap().place, Place { line: 4, column: 8 });
    }

    #[test]
    fn aliases_are_copies() {
        let root = parse("a: &x [1, 2]\nb: *x\n").unwrap();
        let Value::List(items) = &root.get("b").unwrap().value else { panic!("a list") };
        assert_eq!(items.len(), 2);
        assert_ne!(root.get("a").unwrap().id, root.get("b").unwrap().id);
    }

    #[test]
    fn broken_texts_name_the_place() {
        for (text, start) in [
            ("a: [1, 2\n", "1:4: not YAML: unclosed bracket"),
            ("a: 1\na: 2\n", "2:1: `a` is here twice; the first is on line 1"),
            ("a: !secret x\n", "1:12: tags are not used here"),
            ("a: 1\n---\nb: 2\n", "3:1: a second document"),
            ("? [a]\n: 1\n", "1:3: a key must be a word"),
            ("a: *nobody\n", "1:4: not YAML"),
        ] {
            assert!(message(text).starts_with(start), "{text:?}: {}", message(text));
        }
    }

    #[test]
    fn aliases_cannot_explode() {
        let mut text = String::from("a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n");
        for n in 1..9 {
            let before = format!("*a{}", n - 1);
            text += &format!("a{n}: &a{n} [{}]\n", [before.as_str(); 10].join(", "));
        }
        assert!(message(&text).contains("too large"));
    }
}
