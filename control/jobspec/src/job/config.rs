//! A driver's `config`, by the driver's schema.

use super::Reader;
use crate::eval::Value;
use crate::section::nearest;
use hcl_edit::expr::Expression;
use hcl_edit::structure::{Attribute, Block, Body, Structure};
use model::{ConfigKey, ConfigKind, ConfigValue, Plugin, PluginConfig, rules};
use std::collections::BTreeMap;

impl Reader<'_, '_, '_> {
    pub(super) fn plugin_config(&mut self, driver: Plugin, block: &Block) -> PluginConfig {
        let config = PluginConfig { driver, config: self.config_fields(block, driver.schema()) };
        self.rule(&block.ident, "config:", rules::plugin(&config));
        config
    }

    fn config_fields(&mut self, block: &Block, schema: &'static [ConfigKey]) -> BTreeMap<String, ConfigValue> {
        let body = &block.body;
        let mut fields = BTreeMap::new();
        for structure in body {
            match structure {
                Structure::Attribute(attribute) => self.config_attribute(attribute, schema, &mut fields),
                Structure::Block(inner) => self.config_block(inner, schema, &mut fields),
            }
        }
        for key in schema.iter().filter(|key| key.required && !mentions(body, key.name)) {
            self.source.problem(&block.ident, format!("`{}` needs `{}`", block.ident.as_str(), key.name));
        }
        fields
    }

    fn config_attribute(
        &mut self,
        attribute: &Attribute,
        schema: &'static [ConfigKey],
        fields: &mut BTreeMap<String, ConfigValue>,
    ) {
        let name = attribute.key.as_str();
        let Some(kind) = self.config_key(&attribute.key, name, schema) else { return };
        if let Some(value) = self.config_value(&attribute.value, kind) {
            fields.insert(name.to_owned(), value);
        }
    }

    fn config_block(
        &mut self,
        block: &Block,
        schema: &'static [ConfigKey],
        fields: &mut BTreeMap<String, ConfigValue>,
    ) {
        let name = block.ident.as_str();
        let Some(kind) = self.config_key(&block.ident, name, schema) else { return };
        match kind {
            ConfigKind::Block(_) if fields.contains_key(name) => {
                self.source.problem(&block.ident, format!("block `{name}` may stand once here"));
            }
            ConfigKind::Block(inner) => {
                fields.insert(name.to_owned(), ConfigValue::Map(self.config_fields(block, inner)));
            }
            ConfigKind::Blocks(inner) => {
                let value = ConfigValue::Map(self.config_fields(block, inner));
                match fields.entry(name.to_owned()).or_insert_with(|| ConfigValue::List(Vec::new())) {
                    ConfigValue::List(items) => items.push(value),
                    _ => self.source.problem(&block.ident, format!("`{name}` is given in two ways")),
                }
            }
            ConfigKind::TextMap => {
                let texts = self.strings_of(&block.body, name).into_iter();
                let texts = texts.map(|(key, text)| (key, ConfigValue::Text(text)));
                match fields.entry(name.to_owned()).or_insert_with(|| ConfigValue::Map(BTreeMap::new())) {
                    ConfigValue::Map(known) => known.extend(texts),
                    _ => self.source.problem(&block.ident, format!("`{name}` is given in two ways")),
                }
            }
            _ => self.source.problem(&block.ident, format!("`{name}` is a key: write `{name} = …`")),
        }
    }

    /// The key's kind; what is not known or not built is reported.
    fn config_key(&mut self, at: &impl hcl_edit::Span, name: &str, schema: &'static [ConfigKey]) -> Option<ConfigKind> {
        match schema.iter().find(|key| key.name == name).map(|key| key.kind) {
            Some(ConfigKind::NotBuilt) => {
                self.source.problem(at, format!("`{name}` is not built yet for this driver"));
                None
            }
            Some(kind) => Some(kind),
            None => {
                let message = format!("`{name}` is not known in this driver's `config`");
                match nearest(name, schema.iter().map(|key| key.name)) {
                    Some(near) => self.source.problem_with_hint(at, message, format!("did you mean `{near}`?")),
                    None => self.source.problem(at, message),
                }
                None
            }
        }
    }

    fn config_value(&mut self, at: &Expression, kind: ConfigKind) -> Option<ConfigValue> {
        let value = self.value(at)?;
        let (read, wanted) = match kind {
            ConfigKind::Bool => (flag(&value), "true or false"),
            ConfigKind::Integer => (whole(&value).map(ConfigValue::Integer), "a whole number"),
            ConfigKind::Text => (value.text().map(ConfigValue::Text), "a string"),
            ConfigKind::TextList => (text_list(&value), "a list of strings"),
            ConfigKind::TextMap => (text_map(&value), "a map of strings"),
            ConfigKind::Blocks(_) | ConfigKind::Block(_) | ConfigKind::NotBuilt => (None, "written as a block"),
        };
        if read.is_none() {
            self.source.problem(at, format!("must be {wanted}, not {}", value.kind()));
        }
        read
    }

    /// A whole number of either sign.
    pub(super) fn integer(&mut self, at: &Expression) -> Option<i64> {
        let value = self.value(at)?;
        let number = whole(&value);
        if number.is_none() {
            self.source.problem(at, format!("must be a whole number, not {}", value.kind()));
        }
        number
    }
}

fn mentions(body: &Body, name: &str) -> bool {
    body.iter().any(|structure| match structure {
        Structure::Attribute(attribute) => attribute.key.as_str() == name,
        Structure::Block(block) => block.ident.as_str() == name,
    })
}

fn flag(value: &Value) -> Option<ConfigValue> {
    match value.text()?.as_str() {
        "true" => Some(ConfigValue::Bool(true)),
        "false" => Some(ConfigValue::Bool(false)),
        _ => None,
    }
}

fn whole(value: &Value) -> Option<i64> {
    // Beyond 2^53 a float no longer holds every whole number.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let number = value.number()?;
    (number.fract() == 0.0 && number.abs() <= EXACT_MAX).then_some(number as i64)
}

fn text_list(value: &Value) -> Option<ConfigValue> {
    match value {
        Value::List(items) => {
            let texts = items.iter().map(|item| item.text().map(ConfigValue::Text));
            texts.collect::<Option<Vec<_>>>().map(ConfigValue::List)
        }
        _ => None,
    }
}

/// Lists of maps are what files of the older syntax have.
fn text_map(value: &Value) -> Option<ConfigValue> {
    let maps = match value {
        Value::List(items) => items.as_slice(),
        other => std::slice::from_ref(other),
    };
    let mut texts = BTreeMap::new();
    for map in maps {
        let Value::Map(fields) = map else { return None };
        for (key, value) in fields {
            texts.insert(key.clone(), ConfigValue::Text(value.text()?));
        }
    }
    Some(ConfigValue::Map(texts))
}
