//! What differs between two versions of a job, in the shape of Nomad's `JobDiff`: computed from the JSON that clients see, so
//! that every field they can set is compared and named as they know it.

use super::job::{Job, Task, TaskGroup};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiffType {
    #[default]
    None,
    Added,
    Deleted,
    Edited,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct JobDiff {
    #[serde(rename = "Type")]
    pub kind: DiffType,
    #[serde(rename = "ID")]
    pub id: String,
    pub fields: Vec<FieldDiff>,
    pub objects: Vec<ObjectDiff>,
    pub task_groups: Vec<GroupDiff>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct GroupDiff {
    #[serde(rename = "Type")]
    pub kind: DiffType,
    pub name: String,
    pub fields: Vec<FieldDiff>,
    pub objects: Vec<ObjectDiff>,
    pub tasks: Vec<TaskDiff>,
    /// What the scheduler would do, as `create` or `create/destroy update`, with how often.
    pub updates: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TaskDiff {
    #[serde(rename = "Type")]
    pub kind: DiffType,
    pub name: String,
    pub fields: Vec<FieldDiff>,
    pub objects: Vec<ObjectDiff>,
    pub annotations: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ObjectDiff {
    #[serde(rename = "Type")]
    pub kind: DiffType,
    pub name: String,
    pub fields: Vec<FieldDiff>,
    pub objects: Vec<ObjectDiff>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct FieldDiff {
    #[serde(rename = "Type")]
    pub kind: DiffType,
    pub name: String,
    pub old: String,
    pub new: String,
    pub annotations: Vec<String>,
}

/// Set by the servers; a user does not change them.
const NOT_OF_THE_USER: [&str; 9] = [
    "CreateIndex",
    "JobModifyIndex",
    "ModifyIndex",
    "Stable",
    "Status",
    "StatusDescription",
    "Stop",
    "SubmitTime",
    "Version",
];

/// `old` is `None` for a job that is new.
pub fn diff_jobs(old: Option<&Job>, new: &Job) -> JobDiff {
    let task_groups = paired(&groups_of(old), &groups_of(Some(new)), diff_groups);
    let apart = |job: Option<&Job>| job.map(|job| Job { task_groups: None, ..job.clone() }).map(json);
    let (fields, objects) = diff_values(apart(old), apart(Some(new)), &NOT_OF_THE_USER);
    let unchanged =
        fields.is_empty() && objects.is_empty() && task_groups.iter().all(|group| group.kind == DiffType::None);
    let kind = change(old.is_some(), true, unchanged);
    JobDiff { kind, id: new.id.clone().unwrap_or_default(), fields, objects, task_groups }
}

fn diff_groups(name: &str, old: Option<&TaskGroup>, new: Option<&TaskGroup>) -> GroupDiff {
    let tasks = paired(&tasks_of(old), &tasks_of(new), diff_tasks);
    let apart = |group: Option<&TaskGroup>| group.map(|group| TaskGroup { tasks: None, ..group.clone() }).map(json);
    let (fields, objects) = diff_values(apart(old), apart(new), &["Name"]);
    let unchanged = fields.is_empty() && objects.is_empty() && tasks.iter().all(|task| task.kind == DiffType::None);
    let kind = change(old.is_some(), new.is_some(), unchanged);
    GroupDiff { kind, name: name.to_owned(), fields, objects, tasks, updates: BTreeMap::new() }
}

fn diff_tasks(name: &str, old: Option<&Task>, new: Option<&Task>) -> TaskDiff {
    let (fields, objects) = diff_values(old.cloned().map(json), new.cloned().map(json), &["Name"]);
    let kind = change(old.is_some(), new.is_some(), fields.is_empty() && objects.is_empty());
    TaskDiff { kind, name: name.to_owned(), fields, objects, annotations: Vec::new() }
}

fn groups_of(job: Option<&Job>) -> BTreeMap<String, &TaskGroup> {
    by_name(job.and_then(|job| job.task_groups.as_deref()), |group| &group.name)
}

fn tasks_of(group: Option<&TaskGroup>) -> BTreeMap<String, &Task> {
    by_name(group.and_then(|group| group.tasks.as_deref()), |task| &task.name)
}

fn by_name<T>(items: Option<&[T]>, name: impl Fn(&T) -> &Option<String>) -> BTreeMap<String, &T> {
    items.unwrap_or_default().iter().map(|item| (name(item).clone().unwrap_or_default(), item)).collect()
}

/// Both sides by name, in the order of names.
fn paired<T, D>(
    old: &BTreeMap<String, &T>,
    new: &BTreeMap<String, &T>,
    diff: impl Fn(&str, Option<&T>, Option<&T>) -> D,
) -> Vec<D> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    names.into_iter().map(|name| diff(name, old.get(name).copied(), new.get(name).copied())).collect()
}

fn json<T: Serialize>(value: T) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

fn change(was: bool, is: bool, unchanged: bool) -> DiffType {
    match (was, is) {
        (false, true) => DiffType::Added,
        (true, false) => DiffType::Deleted,
        _ if unchanged => DiffType::None,
        _ => DiffType::Edited,
    }
}

/// The scalar fields and the nested ones of two objects that differ.
fn diff_values(old: Option<Value>, new: Option<Value>, skipped: &[&str]) -> (Vec<FieldDiff>, Vec<ObjectDiff>) {
    let (old, new) = (members(old.as_ref()), members(new.as_ref()));
    let names: BTreeSet<&String> =
        old.keys().chain(new.keys()).filter(|name| !skipped.contains(&name.as_str())).collect();
    let (mut fields, mut objects) = (Vec::new(), Vec::new());
    for name in names {
        match (old.get(name), new.get(name)) {
            (old, new) if is_nested(old) || is_nested(new) => objects.extend(diff_nested(name, old, new)),
            (old, new) => fields.extend(diff_field(name, old, new)),
        }
    }
    (fields, objects)
}

fn members(value: Option<&Value>) -> BTreeMap<String, Value> {
    let members = value.and_then(Value::as_object).into_iter().flatten();
    members.filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn is_nested(value: Option<&Value>) -> bool {
    value.is_some_and(|value| value.is_object() || value.is_array())
}

fn diff_field(name: &str, old: Option<&Value>, new: Option<&Value>) -> Option<FieldDiff> {
    let (before, after) = (old.map(text).unwrap_or_default(), new.map(text).unwrap_or_default());
    if before == after {
        return None;
    }
    let kind = change(!before.is_empty(), !after.is_empty(), false);
    Some(FieldDiff { kind, name: name.to_owned(), old: before, new: after, annotations: Vec::new() })
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn diff_nested(name: &str, old: Option<&Value>, new: Option<&Value>) -> Vec<ObjectDiff> {
    let lists = old.is_some_and(Value::is_array) || new.is_some_and(Value::is_array);
    if lists { diff_lists(name, old, new) } else { diff_objects(name, old, new).into_iter().collect() }
}

fn diff_objects(name: &str, old: Option<&Value>, new: Option<&Value>) -> Option<ObjectDiff> {
    let (fields, objects) = diff_values(old.cloned(), new.cloned(), &[]);
    let unchanged = fields.is_empty() && objects.is_empty();
    let kind = change(is_filled(old), is_filled(new), unchanged);
    (!unchanged).then(|| ObjectDiff { kind, name: name.to_owned(), fields, objects })
}

fn is_filled(value: Option<&Value>) -> bool {
    value.is_some_and(|value| value.as_object().is_none_or(|members| members.values().any(|member| !member.is_null())))
}

/// Objects are the same by their name or label, or else by their content; texts by themselves.
fn diff_lists(name: &str, old: Option<&Value>, new: Option<&Value>) -> Vec<ObjectDiff> {
    let (before, after) = (keyed(old), keyed(new));
    if !before.values().chain(after.values()).any(Value::is_object) {
        return diff_texts(name, &before, &after).into_iter().collect();
    }
    let singular = name.strip_suffix('s').unwrap_or(name);
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    keys.into_iter().filter_map(|key| diff_objects(singular, before.get(key), after.get(key))).collect()
}

fn keyed(list: Option<&Value>) -> BTreeMap<String, Value> {
    let items = list.and_then(Value::as_array).into_iter().flatten();
    items.map(|item| (key(item), item.clone())).collect()
}

fn key(item: &Value) -> String {
    let named = ["Name", "Label"].iter().find_map(|field| item.get(field)?.as_str());
    // A group has one network.
    let network = item.get("DynamicPorts").map(|_| "network".to_owned());
    named.map(str::to_owned).or(network).unwrap_or_else(|| text(item))
}

fn diff_texts(name: &str, old: &BTreeMap<String, Value>, new: &BTreeMap<String, Value>) -> Option<ObjectDiff> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let fields: Vec<FieldDiff> =
        keys.into_iter().filter_map(|key| diff_field(name, old.get(key), new.get(key))).collect();
    let kind = change(!old.is_empty(), !new.is_empty(), fields.is_empty());
    (!fields.is_empty()).then(|| ObjectDiff { kind, name: name.to_owned(), fields, objects: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(count: u64, args: &[&str], env: Value) -> Job {
        let task = json!({ "Name": "t", "Driver": "exec", "Config": { "command": "x", "args": args }, "Env": env });
        let group = json!({ "Name": "g", "Count": count, "Tasks": [task] });
        serde_json::from_value(json!({ "ID": "a", "TaskGroups": [group], "Datacenters": ["*"], "Version": count }))
            .expect("a job")
    }

    #[test]
    fn a_job_equals_itself_whatever_the_servers_added() {
        let diff = diff_jobs(Some(&job(1, &[], json!({}))), &Job { version: Some(7), ..job(1, &[], json!({})) });
        assert_eq!((diff.kind, diff.task_groups[0].kind), (DiffType::None, DiffType::None));
    }

    #[test]
    fn what_changed_is_named_where_it_is() {
        let diff =
            diff_jobs(Some(&job(1, &["a"], json!({ "A": "1" }))), &job(3, &["b"], json!({ "A": "2", "B": "x" })));
        let group = &diff.task_groups[0];
        assert_eq!((diff.kind, group.kind), (DiffType::Edited, DiffType::Edited));
        let count = &group.fields[0];
        assert_eq!((count.name.as_str(), count.old.as_str(), count.new.as_str()), ("Count", "1", "3"));
        let names: Vec<(&str, DiffType)> =
            group.tasks[0].objects.iter().map(|object| (object.name.as_str(), object.kind)).collect();
        assert_eq!(names, [("Config", DiffType::Edited), ("Env", DiffType::Edited)]);
        let env: Vec<_> =
            group.tasks[0].objects[1].fields.iter().map(|field| (field.name.as_str(), field.kind)).collect();
        assert_eq!(env, [("A", DiffType::Edited), ("B", DiffType::Added)]);
    }

    #[test]
    fn what_is_new_and_what_is_gone_have_their_types() {
        assert_eq!(diff_jobs(None, &job(1, &[], json!({}))).kind, DiffType::Added);
        let empty = Job { task_groups: Some(Vec::new()), ..job(1, &[], json!({})) };
        assert_eq!(diff_jobs(Some(&job(1, &[], json!({}))), &empty).task_groups[0].kind, DiffType::Deleted);
    }
}
