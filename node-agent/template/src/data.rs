//! What a template can ask for beyond its inputs.

use std::collections::BTreeMap;

/// One thing that a rendering asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependency {
    /// A file in the task's directory.
    File(String),
    Key(String),
    /// All keys below a prefix.
    KeyPrefix(String),
    /// The instances of a service. Those that do not pass their checks are left out unless `any`.
    Service {
        name: String,
        any: bool,
    },
    /// All services by name.
    Services,
    Variable(String),
    /// The paths of all variables below a prefix.
    VariablePrefix(String),
    /// A node by name; `None` is the task's own.
    Node(Option<String>),
    Nodes,
}

impl std::fmt::Display for Dependency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dependency::File(path) => write!(f, "file {path}"),
            Dependency::Key(path) => write!(f, "key {path}"),
            Dependency::KeyPrefix(path) => write!(f, "keys below {path}"),
            Dependency::Service { name, .. } => write!(f, "service {name}"),
            Dependency::Services => f.write_str("the list of services"),
            Dependency::Variable(path) => write!(f, "variable {path}"),
            Dependency::VariablePrefix(path) => write!(f, "variables below {path}"),
            Dependency::Node(Some(name)) => write!(f, "node {name}"),
            Dependency::Node(None) => f.write_str("the task's node"),
            Dependency::Nodes => f.write_str("the list of nodes"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Fetched {
    Found(Content),
    /// It is known that there is none.
    Absent,
    /// Not known yet.
    Pending,
    /// Never: the reason is for the user.
    Refused(String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Bytes(Vec<u8>),
    /// Ordered by path.
    Keys(Vec<KeyValue>),
    /// A variable's items.
    Items(BTreeMap<String, String>),
    Services(Vec<ServiceEntry>),
    /// Service names with the tags of all their instances.
    ServiceNames(BTreeMap<String, Vec<String>>),
    Paths(Vec<String>),
    Nodes(Vec<NodeEntry>),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyValue {
    pub path: String,
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceEntry {
    pub id: String,
    pub name: String,
    pub address: String,
    pub port: u16,
    pub tags: Vec<String>,
    pub meta: BTreeMap<String, String>,
    /// `passing`, `warning` or `critical`.
    pub status: String,
    pub node: String,
    pub node_address: String,
    pub node_id: String,
    pub datacenter: String,
    pub alloc_id: String,
    pub job_id: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeEntry {
    pub id: String,
    pub name: String,
    pub address: String,
    pub datacenter: String,
    pub meta: BTreeMap<String, String>,
}

/// Where the answers come from. Asked many times in one rendering: the same question must get the same answer in it.
pub trait Data {
    fn fetch(&self, wanted: &Dependency) -> Fetched;
}
