//! What asks for data: the environment, keys, variables, services, nodes, files.

use super::{Entry, Outcome, int, list, record_field_of, string};
use crate::data::{Content, Dependency, Fetched, KeyValue, NodeEntry, ServiceEntry};
use crate::exec::{Context, Fault};
use crate::value::{Record, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const TABLE: &[Entry] = &[
    ("env", 1, 1, |c, args| env(c, args, Value::text(""))),
    ("envOrDefault", 2, 2, |c, args| env(c, args, args[1].clone())),
    ("mustEnv", 1, 1, must_env),
    ("file", 1, 1, file),
    ("key", 1, 1, key),
    ("keyOrDefault", 2, 2, key_or_default),
    ("keyExists", 1, 1, key_exists),
    ("ls", 1, 1, |c, args| pairs(c, args, false)),
    ("safeLs", 1, 1, |c, args| pairs(c, args, false)),
    ("tree", 1, 1, |c, args| pairs(c, args, true)),
    ("safeTree", 1, 1, |c, args| pairs(c, args, true)),
    ("service", 1, 2, service),
    ("services", 0, 1, services),
    ("nomadService", 1, 3, nomad_service),
    ("nomadServices", 0, 1, services),
    ("nomadVar", 1, 1, variable),
    ("nomadVarExists", 1, 1, variable_exists),
    ("nomadVarList", 0, 1, variables),
    ("nomadVarListSafe", 0, 1, variables),
    ("node", 0, 1, node),
    ("nodes", 0, 1, nodes),
    ("scratch", 0, 0, |c, _| Ok(c.scratch.clone())),
    ("byKey", 1, 1, by_key),
    ("byTag", 1, 1, by_tag),
];

fn env(context: &mut Context<'_>, args: &[Value], otherwise: Value) -> Outcome {
    let value = context.inputs.env.get(string(&args[0])?.as_ref());
    Ok(value.map_or(otherwise, Value::text))
}

fn must_env(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let name = string(&args[0])?;
    let value = context.inputs.env.get(name.as_ref()).map(Value::text);
    value.ok_or_else(|| Fault::new(format!("{name:?} is not in the task's environment; set it in the env block")))
}

/// Data that is of another kind than asked for is a mistake of whoever gives it.
fn unlike() -> Fault {
    Fault::new("the data is of another kind than asked for")
}

fn file(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let path = string(&args[0])?.into_owned();
    match context.fetch(Dependency::File(path.clone()))? {
        Some(Fetched::Found(Content::Bytes(bytes))) => Ok(Value::text(bytes)),
        Some(Fetched::Found(_)) => Err(unlike()),
        Some(_) => Err(Fault::new(format!("there is no file {path:?} in the task's directory"))),
        None => Ok(Value::text("")),
    }
}

/// `path@datacenter`: there is one.
fn path_of(value: &Value) -> Result<String, Fault> {
    let path = string(value)?;
    let path = path.split('@').next().unwrap_or_default().trim_start_matches('/');
    if path.is_empty() {
        return Err(Fault::new("the path is empty"));
    }
    Ok(path.to_owned())
}

fn fetch_key(context: &mut Context<'_>, value: &Value) -> Result<Option<Option<String>>, Fault> {
    let wanted = Dependency::Key(path_of(value)?);
    match context.fetch(wanted)? {
        Some(Fetched::Found(Content::Keys(mut keys))) => Ok(Some(keys.pop().map(|key| key.value))),
        Some(Fetched::Found(_)) => Err(unlike()),
        Some(_) => Ok(Some(None)),
        None => Ok(None),
    }
}

/// Waits for a key that is not there, as consul-template does.
fn key(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    match fetch_key(context, &args[0])? {
        Some(Some(value)) => Ok(Value::text(value)),
        Some(None) => {
            context.wait_for(Dependency::Key(path_of(&args[0])?));
            Ok(Value::text(""))
        }
        None => Ok(Value::text("")),
    }
}

fn key_or_default(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    match fetch_key(context, &args[0])? {
        Some(Some(value)) if !value.is_empty() => Ok(Value::text(value)),
        _ => Ok(args[1].clone()),
    }
}

fn key_exists(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    Ok(Value::Bool(fetch_key(context, &args[0])?.flatten().is_some()))
}

/// The keys right below a prefix, or all of them, each named from there on.
fn pairs(context: &mut Context<'_>, args: &[Value], deep: bool) -> Outcome {
    let prefix = path_of(&args[0])?.trim_end_matches('/').to_owned();
    let keys = match context.fetch(Dependency::KeyPrefix(prefix.clone()))? {
        Some(Fetched::Found(Content::Keys(keys))) => keys,
        Some(Fetched::Found(_)) => return Err(unlike()),
        _ => Vec::new(),
    };
    let below = |key: KeyValue| {
        let name = key.path.strip_prefix(&prefix)?.strip_prefix('/')?.to_owned();
        let wanted = !name.is_empty() && !name.ends_with('/') && (deep || !name.contains('/'));
        wanted.then(|| {
            let fields =
                vec![("Path", Value::text(&key.path)), ("Key", Value::text(&name)), ("Value", Value::text(&key.value))];
            Value::record("KeyPair", fields)
        })
    };
    Ok(Value::list(keys.into_iter().filter_map(below).collect())?)
}

/// `tag.name@datacenter`; the datacenter is this one.
fn service_name(text: &str) -> Result<(Option<String>, String), Fault> {
    let text = text.split('@').next().unwrap_or_default();
    let (tag, name) = match text.split_once('.') {
        Some((tag, name)) => (Some(tag.to_owned()), name),
        None => (None, text),
    };
    if name.is_empty() {
        return Err(Fault::new("the service's name is empty"));
    }
    Ok((tag, name.to_owned()))
}

fn instances(
    context: &mut Context<'_>,
    (tag, name): (Option<String>, String),
    any: bool,
) -> Result<Vec<ServiceEntry>, Fault> {
    let mut found = match context.fetch(Dependency::Service { name, any })? {
        Some(Fetched::Found(Content::Services(found))) => found,
        Some(Fetched::Found(_)) => return Err(unlike()),
        _ => Vec::new(),
    };
    found.retain(|entry| tag.as_ref().is_none_or(|tag| entry.tags.contains(tag)));
    Ok(found)
}

fn service(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    // The states stand behind a bar or in an argument of their own.
    let (whole, second) = (string(&args[0])?, args.get(1).map(string).transpose()?);
    let (name, filter) = whole.split_once('|').map_or((whole.as_ref(), None), |(name, filter)| (name, Some(filter)));
    let filter = second.as_deref().or(filter);
    let states: Vec<&str> = filter.map_or(Vec::new(), |text| text.split(',').map(str::trim).collect());
    if let Some(wrong) = states.iter().find(|state| !["any", "passing", "warning", "critical"].contains(*state)) {
        return Err(Fault::new(format!("{wrong:?} is no state of a service; use any, passing, warning or critical")));
    }
    let any = states.iter().any(|state| *state != "passing");
    let mut found = instances(context, service_name(name)?, any)?;
    if any && !states.contains(&"any") {
        found.retain(|entry| states.contains(&entry.status.as_str()));
    }
    Ok(Value::list(found.iter().map(service_record).collect())?)
}

fn service_record(entry: &ServiceEntry) -> Value {
    let fields = vec![
        ("ID", Value::text(&entry.id)),
        ("Name", Value::text(&entry.name)),
        ("Address", Value::text(&entry.address)),
        ("Port", Value::Int(i64::from(entry.port))),
        ("Tags", Value::texts(&entry.tags)),
        ("Status", Value::text(&entry.status)),
        ("ServiceMeta", Value::text_map(&entry.meta)),
        ("Node", Value::text(&entry.node)),
        ("NodeID", Value::text(&entry.node_id)),
        ("NodeAddress", Value::text(&entry.node_address)),
        ("NodeDatacenter", Value::text(&entry.datacenter)),
    ];
    Value::record("HealthService", fields)
}

/// `nomadService "name"`, or `nomadService count key "name"`: so many of them, the same for the same key.
fn nomad_service(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let (choice, name) = match args {
        [name] => (None, name),
        [count, key, name] => (Some((int(count)?, string(key)?.into_owned())), name),
        _ => return Err(Fault::new("takes a name, or a count, a key and a name")),
    };
    let mut found = instances(context, service_name(&string(name)?)?, false)?;
    if let Some((count, key)) = choice {
        let rank = |entry: &ServiceEntry| {
            ring::digest::digest(&ring::digest::SHA256, format!("{key}:{}", entry.id).as_bytes())
        };
        found.sort_by_cached_key(|entry| rank(entry).as_ref().to_vec());
        found.truncate(usize::try_from(count).unwrap_or(0));
    }
    let record = |entry: &ServiceEntry| {
        let fields = vec![
            ("ID", Value::text(&entry.id)),
            ("Name", Value::text(&entry.name)),
            ("Address", Value::text(&entry.address)),
            ("Port", Value::Int(i64::from(entry.port))),
            ("Tags", Value::texts(&entry.tags)),
            ("Node", Value::text(&entry.node_id)),
            ("Datacenter", Value::text(&entry.datacenter)),
            ("AllocID", Value::text(&entry.alloc_id)),
            ("JobID", Value::text(&entry.job_id)),
        ];
        Value::record("NomadService", fields)
    };
    Ok(Value::list(found.iter().map(record).collect())?)
}

fn services(context: &mut Context<'_>, _: &[Value]) -> Outcome {
    let found = match context.fetch(Dependency::Services)? {
        Some(Fetched::Found(Content::ServiceNames(found))) => found,
        Some(Fetched::Found(_)) => return Err(unlike()),
        _ => BTreeMap::new(),
    };
    let record = |(name, tags): (&String, &Vec<String>)| {
        Value::record("CatalogSnippet", vec![("Name", Value::text(name)), ("Tags", Value::texts(tags))])
    };
    Ok(Value::list(found.iter().map(record).collect())?)
}

fn fetch_items(context: &mut Context<'_>, path: &str) -> Result<Option<Option<BTreeMap<String, String>>>, Fault> {
    match context.fetch(Dependency::Variable(path.to_owned()))? {
        Some(Fetched::Found(Content::Items(items))) => Ok(Some(Some(items))),
        Some(Fetched::Found(_)) => Err(unlike()),
        Some(_) => Ok(Some(None)),
        None => Ok(None),
    }
}

/// Waits for a variable that is not there, as Nomad does.
fn variable(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let path = path_of(&args[0])?;
    let found = fetch_items(context, &path)?;
    if found == Some(None) {
        context.wait_for(Dependency::Variable(path.clone()));
    }
    let items = found.flatten().unwrap_or_default();
    let item = |(key, value): (&String, &String)| {
        let fields = vec![("Key", Value::text(key)), ("Value", Value::text(value)), ("Path", Value::text(&path))];
        let record = Record { name: "NomadVarItem", fields, shown_as: Some(Value::text(value)) };
        (key.clone(), Value::Record(Arc::new(record)))
    };
    Ok(Value::map(items.iter().map(item).collect())?)
}

fn variable_exists(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let path = path_of(&args[0])?;
    Ok(Value::Bool(fetch_items(context, &path)?.flatten().is_some()))
}

fn variables(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let prefix = args.first().map(string).transpose()?.unwrap_or_default().trim_start_matches('/').to_owned();
    let found = match context.fetch(Dependency::VariablePrefix(prefix))? {
        Some(Fetched::Found(Content::Paths(found))) => found,
        Some(Fetched::Found(_)) => return Err(unlike()),
        _ => Vec::new(),
    };
    let record = |path: &String| {
        let fields = vec![("Path", Value::text(path))];
        Value::Record(Arc::new(Record { name: "NomadVarMeta", fields, shown_as: Some(Value::text(path)) }))
    };
    Ok(Value::list(found.iter().map(record).collect())?)
}

fn node_record(entry: &NodeEntry) -> Value {
    let fields = vec![
        ("ID", Value::text(&entry.id)),
        ("Node", Value::text(&entry.name)),
        ("Address", Value::text(&entry.address)),
        ("Datacenter", Value::text(&entry.datacenter)),
        ("Meta", Value::text_map(&entry.meta)),
    ];
    Value::record("Node", fields)
}

fn fetch_nodes(context: &mut Context<'_>, wanted: Dependency) -> Result<Vec<NodeEntry>, Fault> {
    match context.fetch(wanted)? {
        Some(Fetched::Found(Content::Nodes(found))) => Ok(found),
        Some(Fetched::Found(_)) => Err(unlike()),
        _ => Ok(Vec::new()),
    }
}

/// `.Node` of the answer, as consul-template has it; nil for a node that is not there.
fn node(context: &mut Context<'_>, args: &[Value]) -> Outcome {
    let name = args.first().map(string).transpose()?;
    let name = name.and_then(|name| name.split('@').next().map(str::to_owned)).filter(|name| !name.is_empty());
    let found = fetch_nodes(context, Dependency::Node(name))?;
    Ok(found.first().map_or(Value::Nil, |entry| Value::record("CatalogNode", vec![("Node", node_record(entry))])))
}

fn nodes(context: &mut Context<'_>, _: &[Value]) -> Outcome {
    let found = fetch_nodes(context, Dependency::Nodes)?;
    Ok(Value::list(found.iter().map(node_record).collect())?)
}

/// Pairs by the first part of their keys, then by the second.
fn by_key(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    let mut groups: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    for pair in list(&args[0])? {
        let key = string(record_field_of(pair, "Key")?)?.into_owned();
        if let Some((group, rest)) = key.split_once('/') {
            groups.entry(group.to_owned()).or_default().insert(rest.to_owned(), pair.clone());
        }
    }
    let groups: Result<BTreeMap<String, Value>, _> =
        groups.into_iter().map(|(group, pairs)| Ok::<_, Fault>((group, Value::map(pairs)?))).collect();
    Ok(Value::map(groups?)?)
}

fn by_tag(_: &mut Context<'_>, args: &[Value]) -> Outcome {
    let mut groups: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for service in list(&args[0])? {
        for tag in list(record_field_of(service, "Tags")?)? {
            groups.entry(string(tag)?.into_owned()).or_default().push(service.clone());
        }
    }
    let groups: Result<BTreeMap<String, Value>, _> =
        groups.into_iter().map(|(tag, services)| Ok::<_, Fault>((tag, Value::list(services)?))).collect();
    Ok(Value::map(groups?)?)
}
