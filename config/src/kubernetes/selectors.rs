//! Selectors of objects by their labels.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::objects::{Labels, or_default};

/// Chooses objects by their labels; all of it must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels with their values.
    pub match_labels: Labels,
    /// Further conditions.
    pub match_expressions: Vec<LabelCondition>,
}

/// A condition on a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LabelCondition {
    /// The label.
    pub key: String,
    /// What of it.
    pub operator: LabelOperator,
    /// With `In` and `NotIn`: its values.
    #[serde(default)]
    pub values: Vec<String>,
}

/// What is asked of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LabelOperator {
    /// Has one of the values.
    In,
    /// Has none of the values, or is not there.
    NotIn,
    /// Is there.
    Exists,
    /// Is not there.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether an object with these labels is chosen.
    #[must_use]
    pub fn admits(&self, labels: &Labels) -> bool {
        let holds = |condition: &LabelCondition| {
            let value = labels.get(&condition.key);
            match condition.operator {
                LabelOperator::In => value.is_some_and(|value| condition.values.contains(value)),
                LabelOperator::NotIn => value.is_none_or(|value| !condition.values.contains(value)),
                LabelOperator::Exists => value.is_some(),
                LabelOperator::DoesNotExist => value.is_none(),
            }
        };
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(holds)
    }
}

/// A [`LabelSelector`] as objects have it: one that makes no sense must not keep others from being read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SelectorFields {
    /// As there.
    #[serde(deserialize_with = "or_default")]
    pub match_labels: Labels,
    /// As there.
    #[serde(deserialize_with = "or_default")]
    pub match_expressions: Vec<SelectorExpression>,
}

/// A [`LabelCondition`] as objects have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelectorExpression {
    /// As there.
    #[serde(deserialize_with = "or_default")]
    pub key: String,
    /// As there.
    #[serde(deserialize_with = "or_default")]
    pub operator: String,
    /// As there.
    #[serde(deserialize_with = "or_default")]
    pub values: Vec<String>,
}

impl SelectorFields {
    /// What they say; an error says what to mend.
    pub fn selector(&self) -> Result<LabelSelector, String> {
        let condition = |written: &SelectorExpression| {
            let operator = match written.operator.as_str() {
                "In" => LabelOperator::In,
                "NotIn" => LabelOperator::NotIn,
                "Exists" => LabelOperator::Exists,
                "DoesNotExist" => LabelOperator::DoesNotExist,
                other => {
                    return Err(format!(
                        "operator `{other}` of a selector is none of In, NotIn, Exists, DoesNotExist"
                    ));
                }
            };
            let (key, values) = (written.key.clone(), written.values.clone());
            Ok(LabelCondition { key, operator, values })
        };
        Ok(LabelSelector {
            match_labels: self.match_labels.clone(),
            match_expressions: self
                .match_expressions
                .iter()
                .map(condition)
                .collect::<Result<_, _>>()?,
        })
    }
}

pub(super) fn selectors(written: &[SelectorFields]) -> Result<Vec<LabelSelector>, String> {
    written.iter().map(SelectorFields::selector).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::objects::Meta;
    use crate::kubernetes::pools::Selection;

    #[test]
    fn labels_choose() {
        let labels = |text: &str| -> Labels {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            pairs.map(|(key, value)| (key.into(), value.into())).collect()
        };
        let condition = |key: &str, operator, values: &[&str]| LabelSelector {
            match_labels: Labels::new(),
            match_expressions: vec![LabelCondition {
                key: key.into(),
                operator,
                values: values.iter().map(|value| (*value).into()).collect(),
            }],
        };
        let equal = LabelSelector { match_labels: labels("tier=edge"), ..LabelSelector::default() };
        for (selector, has, lacks) in [
            (LabelSelector::default(), "", None),
            (equal, "tier=edge,a=b", Some("tier=core")),
            (condition("tier", LabelOperator::In, &["a", "b"]), "tier=b", Some("tier=c")),
            (condition("tier", LabelOperator::In, &["a"]), "tier=a", Some("")),
            (condition("tier", LabelOperator::NotIn, &["a"]), "", Some("tier=a")),
            (condition("tier", LabelOperator::Exists, &[]), "tier=", Some("")),
            (condition("tier", LabelOperator::DoesNotExist, &[]), "", Some("tier=")),
        ] {
            assert!(selector.admits(&labels(has)), "{selector:?}");
            assert!(lacks.is_none_or(|lacks| !selector.admits(&labels(lacks))), "{selector:?}");
        }
        let selection = |namespaces: &[&str], by_namespace: &[&str], by_service: &[&str]| {
            let selectors = |texts: &[&str]| {
                let selector = |text: &&str| LabelSelector {
                    match_labels: labels(text),
                    ..LabelSelector::default()
                };
                texts.iter().map(selector).collect()
            };
            Selection {
                namespaces: namespaces.iter().map(|name| (*name).into()).collect(),
                namespace_selectors: selectors(by_namespace),
                service_selectors: selectors(by_service),
            }
        };
        let service =
            Meta { namespace: "shop".into(), labels: labels("app=web"), ..Meta::default() };
        for (selection, admitted) in [
            (Selection::default(), true),
            (selection(&["shop"], &[], &[]), true),
            (selection(&["other"], &[], &[]), false),
            (selection(&["other"], &["team=a"], &[]), true),
            (selection(&[], &["team=b"], &[]), false),
            (selection(&[], &[], &["app=web"]), true),
            (selection(&["shop"], &[], &["app=db"]), false),
            (selection(&["other"], &[], &["app=web"]), false),
        ] {
            assert_eq!(selection.admits(&service, &labels("team=a")), admitted, "{selection:?}");
        }
    }
}
