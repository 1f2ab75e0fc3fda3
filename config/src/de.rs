//! From a tree to typed values, with every error in its place.
//!
//! serde stops at the first error. So reading goes in rounds: an error is noted with its place,
//! the node that caused it is left out, and the reading starts over, until it succeeds or the
//! whole value is lost. What is left is then checked for meaning, so that one run shows errors of
//! every kind. Services are read one by one, so a round never covers the whole document.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::OnceLock;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use crate::Place;
use crate::tree::{Key, Node, Value};

/// Name by which [`crate::At`] asks for its place.
pub(crate) const AT: &str = "$fairway::At";
/// Errors of one value after which the rest is not looked at.
const MOST_ERRORS: usize = 200;

/// An error and the node that is left out in the next round.
#[derive(Debug)]
pub(crate) struct Error {
    message: String,
    at: Option<(u32, Place)>,
    /// A field is missing because its value was left out: that was said already.
    missing: bool,
}

impl Error {
    fn at(mut self, node: &Node) -> Self {
        self.at.get_or_insert((node.id, node.place));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), at: None, missing: false }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { missing: true, ..Self::custom(format_args!("`{field}` is missing; add it")) }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let ours =
            FOREIGN_FIELDS.iter().find(|(word, ours)| *word == field && expected.contains(ours));
        let near = ours.map(|(_, ours)| *ours).or_else(|| nearest(field, expected));
        let hint = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known here: {}", expected.join(", ")),
        };
        Self::custom(format_args!("unknown field `{field}`; {hint}"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let ours = FOREIGN.iter().find(|(word, _)| word.eq_ignore_ascii_case(variant));
        let near = ours.map(|(_, ours)| *ours).filter(|ours| expected.contains(ours));
        let hint = near.or_else(|| nearest(variant, expected));
        let hint = hint.map_or_else(String::new, |word| format!("; did you mean `{word}`?"));
        Self::custom(format_args!("`{variant}` is none of: {}{hint}", expected.join(", ")))
    }
}

/// What keepalived, BIRD and MetalLB call fields of announcements.
const FOREIGN_FIELDS: [(&str, &str); 12] = [
    ("virtual_ipaddress", "addresses"),
    ("virtual_router_id", "virtualRouterId"),
    ("advert_int", "advertInterval"),
    ("nopreempt", "preempt"),
    ("preempt_delay", "preemptDelay"),
    ("unicast_peer", "unicastPeers"),
    ("unicast_src_ip", "sourceAddress"),
    ("track_interface", "track"),
    ("ipAddressPools", "addressPools"),
    ("password", "passwordFile"),
    ("passwordSecret", "passwordFile"),
    ("neighbor", "peerAddress"),
];

/// What IPVS and HAProxy call our schedulers.
const FOREIGN: [(&str, &str); 12] = [
    ("rr", "roundRobin"),
    ("wrr", "roundRobin"),
    ("lc", "leastConnections"),
    ("wlc", "leastConnections"),
    ("leastconn", "leastConnections"),
    ("sed", "shortestExpectedDelay"),
    ("nq", "neverQueue"),
    ("sh", "sourceHash"),
    ("source", "sourceHash"),
    ("dh", "destinationHash"),
    ("mh", "maglev"),
    ("twos", "powerOfTwo"),
];

/// The expected word that is one slip of the keyboard away, or differs only in case.
pub(crate) fn nearest<'a>(word: &str, expected: &[&'a str]) -> Option<&'a str> {
    let distance = |a: &str, b: &str| {
        let b: Vec<char> = b.to_lowercase().chars().filter(|c| !"-_".contains(*c)).collect();
        let mut row: Vec<usize> = (0..=b.len()).collect();
        for (i, x) in a.to_lowercase().chars().filter(|c| !"-_".contains(*c)).enumerate() {
            let mut corner = row[0];
            row[0] = i + 1;
            for (j, y) in b.iter().enumerate() {
                let change = corner + usize::from(x != *y);
                corner = row[j + 1];
                row[j + 1] = change.min(row[j] + 1).min(corner + 1);
            }
        }
        row[b.len()]
    };
    let best = expected.iter().map(|known| (distance(word, known), *known)).min()?;
    (best.0 <= 1 + word.len() / 5).then_some(best.1)
}

/// Reads `node` as a `T`; what is wrong goes to `report`, what can be saved is returned.
///
/// Nodes in `skip` are treated as absent.
pub(crate) fn read<T: DeserializeOwned>(
    node: &Node,
    skip: &[u32],
    mut report: impl FnMut(Place, String),
) -> Option<T> {
    let mut left_out: HashSet<u32> = skip.iter().copied().collect();
    for _ in 0..MOST_ERRORS {
        let de = De { node, left_out: &left_out };
        let error = match T::deserialize(de) {
            Ok(value) => return Some(value),
            Err(error) => error.at(node),
        };
        let (id, place) = error.at?;
        let consequence = error.missing && has_left_out(node, id, &left_out);
        if !consequence {
            report(place, error.message);
        }
        if id == node.id {
            return None;
        }
        left_out.insert(id);
    }
    None
}

/// The fields that the struct `name` of the document must have, from its JSON Schema.
fn required_of(name: &str) -> &'static [String] {
    static REQUIRED: OnceLock<HashMap<String, Vec<String>>> = OnceLock::new();
    let all = REQUIRED.get_or_init(|| {
        let schema = crate::document::schema();
        let types =
            schema.get("$defs").and_then(serde_json::Value::as_object).into_iter().flatten();
        let required = |definition: &serde_json::Value| {
            let list = definition.get("required")?.as_array()?;
            Some(list.iter().filter_map(|field| Some(field.as_str()?.to_owned())).collect())
        };
        types.filter_map(|(name, of)| Some((name.clone(), required(of)?))).collect()
    });
    all.get(name).map_or(&[], Vec::as_slice)
}

/// Whether a child of the map `id` below `node` was left out before.
fn has_left_out(node: &Node, id: u32, left_out: &HashSet<u32>) -> bool {
    let children: Box<dyn Iterator<Item = &Node>> = match &node.value {
        Value::List(items) => Box::new(items.iter()),
        Value::Map(entries) => Box::new(entries.iter().map(|(_, value)| value)),
        _ => return false,
    };
    if node.id == id {
        return { children }.any(|child| left_out.contains(&child.id));
    }
    { children }.any(|child| has_left_out(child, id, left_out))
}

#[derive(Clone, Copy)]
struct De<'a> {
    node: &'a Node,
    left_out: &'a HashSet<u32>,
}

impl<'a> De<'a> {
    fn wants<T>(self, what: &str) -> Result<T, Error> {
        let message = format!("expected {what}, found {}", self.node.kind());
        Err(<Error as de::Error>::custom(message).at(self.node))
    }

    fn text(self, what: &str) -> Result<&'a str, Error> {
        match &self.node.value {
            Value::Scalar { text, .. } => Ok(text),
            _ => self.wants(what),
        }
    }

    fn plain(self, what: &str) -> Result<&'a str, Error> {
        match &self.node.value {
            Value::Scalar { text, quoted: false } => Ok(text),
            _ => self.wants(what),
        }
    }

    fn placed<T>(self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| error.at(self.node))
    }

    fn list<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::List(items) => {
                let access = Items { items: items.iter(), left_out: self.left_out };
                self.placed(visitor.visit_seq(access))
            }
            _ => self.wants("a list"),
        }
    }

    /// serde names the first field that is missing; this names all of the struct `name`.
    fn with_all_missing(self, name: &str, error: Error) -> Error {
        let here = error.at.is_some_and(|(id, _)| id == self.node.id);
        let (true, true, Value::Map(entries)) = (error.missing, here, &self.node.value) else {
            return error;
        };
        let is_written = |field: &String| {
            let mut entries = entries.iter();
            entries.any(|(key, node)| *key.text == **field && !matches!(node.value, Value::Null))
        };
        let absent: Vec<_> = required_of(name)
            .iter()
            .filter(|field| !is_written(field))
            .map(String::as_str)
            .collect();
        let message = match absent.as_slice() {
            // All are written: one was left out, and that was said.
            [] => return error,
            [one] => format!("`{one}` is missing; add it"),
            [most @ .., last] => {
                format!("`{}` and `{last}` are missing; add them", most.join("`, `"))
            }
        };
        Error { message, missing: false, ..error }
    }

    fn map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Map(entries) => {
                let access =
                    Entries { entries: entries.iter(), value: None, left_out: self.left_out };
                self.placed(visitor.visit_map(access))
            }
            Value::Null => {
                let access = Entries { entries: [].iter(), value: None, left_out: self.left_out };
                self.placed(visitor.visit_map(access))
            }
            _ => self.wants("a map"),
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let what = concat!("a whole number (", stringify!($type), ")");
            match self.plain(what)?.parse::<$type>() {
                Ok(number) => self.placed(visitor.$visit(number)),
                Err(_) => self.wants(&format!(
                    "a whole number from {} to {}", <$type>::MIN, <$type>::MAX
                )),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for De<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => self.placed(visitor.visit_unit()),
            Value::Scalar { text, .. } => self.placed(visitor.visit_str(text)),
            Value::List(_) => self.list(visitor),
            Value::Map(_) => self.map(visitor),
        }
    }

    numbers! {
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.plain("true or false")? {
            "true" => self.placed(visitor.visit_bool(true)),
            "false" => self.placed(visitor.visit_bool(false)),
            _ => self.wants("true or false"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = self.text("a text")?;
        self.placed(visitor.visit_str(text))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => self.placed(visitor.visit_none()),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.map(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name == AT {
            return self.placed(visitor.visit_map(Placed { de: self, step: 0 }));
        }
        self.map(visitor).map_err(|error| self.with_all_missing(name, error))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let word = self.text("a word")?;
        self.placed(visitor.visit_enum(Word(word)))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
        ignored_any
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Node>,
    left_out: &'a HashSet<u32>,
}

impl<'a> SeqAccess<'a> for Items<'a> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'a>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.items.find(|node| !self.left_out.contains(&node.id)) else {
            return Ok(None);
        };
        seed.deserialize(De { node, left_out: self.left_out })
            .map(Some)
            .map_err(|error| error.at(node))
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a Node>,
    left_out: &'a HashSet<u32>,
}

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        // `key:` without a value is the same as no key.
        let mut present = self.entries.by_ref().filter(|(_, node)| {
            !self.left_out.contains(&node.id) && !matches!(node.value, Value::Null)
        });
        let Some((key, node)) = present.next() else {
            return Ok(None);
        };
        self.value = Some(node);
        let text: &str = &key.text;
        seed.deserialize(text.into_deserializer()).map(Some).map_err(|mut error: Error| {
            error.at.get_or_insert((node.id, key.place));
            error
        })
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(node) = self.value.take() else {
            return Err(de::Error::custom("a value was read before its key"));
        };
        seed.deserialize(De { node, left_out: self.left_out }).map_err(|error| error.at(node))
    }
}

/// Gives [`crate::At`] line, column and value.
struct Placed<'a> {
    de: De<'a>,
    step: u8,
}

impl<'a> MapAccess<'a> for Placed<'a> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.step += 1;
        let key = match self.step {
            1 => "line",
            2 => "column",
            3 => "value",
            _ => return Ok(None),
        };
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Error> {
        match self.step {
            1 => seed.deserialize(self.de.node.place.line.into_deserializer()),
            2 => seed.deserialize(self.de.node.place.column.into_deserializer()),
            _ => seed.deserialize(self.de),
        }
    }
}

struct Word<'a>(&'a str);

impl<'a> EnumAccess<'a> for Word<'a> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'a>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let value = seed.deserialize(self.0.into_deserializer())?;
        Ok((value, self))
    }
}

impl<'a> VariantAccess<'a> for Word<'a> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'a>>(self, _seed: T) -> Result<T::Value, Error> {
        Err(de::Error::custom("a word stands alone here"))
    }

    fn tuple_variant<V: Visitor<'a>>(self, _len: usize, _visitor: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("a word stands alone here"))
    }

    fn struct_variant<V: Visitor<'a>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Error> {
        Err(de::Error::custom("a word stands alone here"))
    }
}
