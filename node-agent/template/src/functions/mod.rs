//! The functions by name, with how many arguments each takes.

mod codec;
mod collections;
mod compare;
mod data;
mod json;
mod math;
mod sprig;
mod text;
mod when;

use crate::exec::{Context, Fault};
use crate::value::{Scratch, Value};
use std::borrow::Cow;

pub type Outcome = Result<Value, Fault>;
type Function = fn(&mut Context<'_>, &[Value]) -> Outcome;

/// Name, fewest and most arguments, what it does.
type Entry = (&'static str, usize, usize, Function);

const MANY: usize = usize::MAX;

/// The first that knows a name answers. Sprig's stand last: where both have a name, job files mean consul-template's.
const TABLES: [&[Entry]; 8] =
    [compare::TABLE, data::TABLE, text::TABLE, collections::TABLE, math::TABLE, codec::TABLE, json::TABLE, when::TABLE];

/// Known elsewhere, and never here.
const REFUSED: [(&str, &str); 24] = [
    ("secret", "there is no secret store here: keep the value in a variable and read it with nomadVar"),
    ("secrets", "there is no secret store here: keep the values in variables and list them with nomadVarList"),
    ("pkiCert", "there is no certificate authority for tasks here: bring the certificate as an artifact or a variable"),
    ("caRoots", "there is no service mesh with certificates here"),
    ("caLeaf", "there is no service mesh with certificates here"),
    ("connect", "there is no service mesh with sidecars here: use service or nomadService"),
    ("plugin", "a template starts no programs: use a prestart task"),
    ("sockaddr", "templates do not look at interfaces: use env \"NOMAD_IP_<label>\" or attr values in env"),
    ("writeToFile", "a template writes its own destination only: add a template block for each file"),
    ("spew_dump", "debugging output is not built: use toJSONPretty or printf \"%v\""),
    ("spew_printf", "debugging output is not built: use toJSONPretty or printf \"%v\""),
    ("spew_sdump", "debugging output is not built: use toJSONPretty or printf \"%v\""),
    ("spew_sprintf", "debugging output is not built: use toJSONPretty or printf \"%v\""),
    ("parseYAML", "parseYAML is not built: keep the data as JSON and use parseJSON"),
    ("call", "there are no function values to call"),
    ("datacenters", "datacenters is not built: a cluster is one datacenter; use env \"NOMAD_DC\""),
    ("exportedServices", "there are no partitions or peers here"),
    ("partitions", "there are no partitions here"),
    ("peerings", "there are no peers here"),
    ("uuidv4", "templates make no random values: a rendering must come out the same again"),
    ("randAlphaNum", "templates make no random values: a rendering must come out the same again"),
    ("genPrivateKey", "templates make no random values: a rendering must come out the same again"),
    ("mergeMap", "mergeMap is not built: range over both maps"),
    ("byMeta", "byMeta is not built: range over the services and look at .ServiceMeta"),
];

fn find(name: &str) -> Option<&'static Entry> {
    if let Some(own) = name.strip_prefix("sprig_") {
        return sprig::TABLE.iter().find(|(known, ..)| *known == own);
    }
    let mut tables = TABLES.into_iter().chain([sprig::TABLE]);
    tables.find_map(|table| table.iter().find(|(known, ..)| *known == name))
}

/// Why a template that names this function is not taken, if it is not.
pub fn refusal(name: &str) -> Option<String> {
    if matches!(name, "and" | "or" | "executeTemplate") || find(name).is_some() {
        return None;
    }
    let plain = name.strip_prefix("sprig_").unwrap_or(name);
    let known = REFUSED.iter().find(|(refused, _)| *refused == plain);
    Some(known.map_or_else(|| format!("function {name:?} is not defined"), |(_, why)| format!("{name}: {why}")))
}

pub fn call(context: &mut Context<'_>, name: &str, args: &[Value]) -> Outcome {
    let (_, least, most, function) = find(name).ok_or_else(|| Fault::new("is not defined"))?;
    if args.len() < *least || args.len() > *most {
        let wanted = match (*least, *most) {
            (least, most) if least == most => format!("{least}"),
            (least, MANY) => format!("at least {least}"),
            (least, most) => format!("{least} to {most}"),
        };
        return Err(Fault::new(format!("takes {wanted} arguments, not {}", args.len())));
    }
    context.step(1 + args.iter().map(|arg| arg.weight() as u64 / 64).sum::<u64>())?;
    function(context, args)
}

/// The methods of a scratch.
pub fn scratch(context: &mut Context<'_>, scratch: &Scratch, name: &str, args: &[Value]) -> Outcome {
    context.make(args.iter().map(Value::weight).sum::<usize>() + 64)?;
    let known = |scratch: &Scratch, key: &str| scratch.with(|values| values.contains_key(key));
    match (name, args) {
        ("Key", [key]) => Ok(Value::Bool(known(scratch, &string(key)?))),
        ("Get", [key]) => {
            let key = string(key)?;
            Ok(scratch.with(|values| values.get(key.as_ref()).cloned()).unwrap_or(Value::Nil))
        }
        ("Set", [key, value]) => keep(scratch, &string(key)?, value),
        ("SetX", [key, _]) if known(scratch, &string(key)?) => Ok(Value::text("")),
        ("SetX", [key, value]) => keep(scratch, &string(key)?, value),
        ("MapSet" | "MapSetX", [key, field, value]) => {
            let (key, field) = (string(key)?, string(field)?);
            let held = scratch.with(|values| values.get(key.as_ref()).cloned());
            let mut entries = match &held {
                None => std::collections::BTreeMap::new(),
                Some(Value::Map(map)) => map.entries().clone(),
                Some(other) => return Err(Fault::new(format!("{key:?} holds a {}, not a map", other.kind()))),
            };
            if name == "MapSet" || !entries.contains_key(field.as_ref()) {
                entries.insert(field.into_owned(), value.clone());
            }
            let map = Value::map(entries)?;
            context.make(map.weight())?;
            context.step(map.weight() as u64 / 64)?;
            keep(scratch, &key, &map)
        }
        ("MapValues", [key]) => {
            let held = scratch.with(|values| values.get(string(key).unwrap_or_default().as_ref()).cloned());
            match held {
                None => Ok(Value::list(Vec::new())?),
                Some(Value::Map(map)) => Ok(Value::list(map.entries().values().cloned().collect())?),
                Some(other) => Err(Fault::new(format!("it holds a {}, not a map", other.kind()))),
            }
        }
        ("Key" | "Get" | "Set" | "SetX" | "MapSet" | "MapSetX" | "MapValues", _) => {
            Err(Fault::new(format!("scratch.{name} does not take {} arguments", args.len())))
        }
        _ => {
            Err(Fault::new(format!("a scratch has no {name}; it has Get, Key, Set, SetX, MapSet, MapSetX, MapValues")))
        }
    }
}

fn keep(scratch: &Scratch, key: &str, value: &Value) -> Outcome {
    // Wrapped once to learn whether it may be kept at all.
    Value::list(vec![value.clone()])?;
    scratch.with(|values| values.insert(key.to_owned(), value.clone()));
    Ok(Value::text(""))
}

/// An argument that must be text.
fn string(value: &Value) -> Result<Cow<'_, str>, Fault> {
    match value {
        Value::Text(text) => Ok(String::from_utf8_lossy(text)),
        Value::Record(record) => match &record.shown_as {
            Some(Value::Text(text)) => Ok(String::from_utf8_lossy(text)),
            _ => Err(wanted("a string", value)),
        },
        other => Err(wanted("a string", other)),
    }
}

fn bytes(value: &Value) -> Result<&[u8], Fault> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(wanted("a string", other)),
    }
}

/// Anything as text, as sprig takes it.
fn loose(value: &Value) -> String {
    match value {
        Value::Nil => String::new(),
        other => String::from_utf8_lossy(&other.show()).into_owned(),
    }
}

fn int(value: &Value) -> Result<i64, Fault> {
    match value {
        Value::Int(number) => Ok(*number),
        other => Err(wanted("a whole number", other)),
    }
}

fn list(value: &Value) -> Result<&[Value], Fault> {
    match value {
        Value::List(list) => Ok(list.items()),
        Value::Nil => Ok(&[]),
        other => Err(wanted("a list", other)),
    }
}

fn record_field_of<'a>(value: &'a Value, field: &str) -> Result<&'a Value, Fault> {
    let Value::Record(record) = value else { return Err(wanted("a list of what ls, tree or service give", value)) };
    record.field(field).ok_or_else(|| Fault::new(format!("{} has no {field}", record.name)))
}

fn wanted(what: &str, found: &Value) -> Fault {
    Fault::new(format!("wants {what}, not a {}", found.kind()))
}

fn text(text: impl AsRef<[u8]>) -> Outcome {
    Ok(Value::text(text))
}
