//! Drivers and their configuration.

use super::{Result, ToModel, ToPb, all, all_by_name, enum_pairs, enumeration, list, map, present};
use crate::pb;
use model::{ConfigValue, ExecConfig, Plugin, PluginConfig, TaskDriver};

impl ToPb<pb::task::Driver> for TaskDriver {
    fn to_pb(&self) -> pb::task::Driver {
        match self {
            TaskDriver::Exec(config) => pb::task::Driver::Exec(config.to_pb()),
            TaskDriver::RawExec(config) => pb::task::Driver::RawExec(config.to_pb()),
            TaskDriver::Plugin(config) => pb::task::Driver::Plugin(config.to_pb()),
        }
    }
}

impl ToModel<TaskDriver> for pb::task::Driver {
    fn to_model(self) -> Result<TaskDriver> {
        Ok(match self {
            pb::task::Driver::Exec(config) => TaskDriver::Exec(config.to_model()?),
            pb::task::Driver::RawExec(config) => TaskDriver::RawExec(config.to_model()?),
            pb::task::Driver::Plugin(config) => TaskDriver::Plugin(config.to_model()?),
        })
    }
}

impl ToPb<pb::ExecConfig> for ExecConfig {
    fn to_pb(&self) -> pb::ExecConfig {
        pb::ExecConfig {
            command: self.command.clone(),
            args: self.args.clone(),
            work_dir: self.work_dir.clone(),
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
        }
    }
}

impl ToModel<ExecConfig> for pb::ExecConfig {
    fn to_model(self) -> Result<ExecConfig> {
        Ok(ExecConfig {
            command: self.command,
            args: self.args,
            work_dir: self.work_dir,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
        })
    }
}

impl ToPb<pb::PluginConfig> for PluginConfig {
    fn to_pb(&self) -> pb::PluginConfig {
        pb::PluginConfig { driver: self.driver.to_pb().into(), config: all_by_name(&self.config) }
    }
}

impl ToModel<PluginConfig> for pb::PluginConfig {
    fn to_model(self) -> Result<PluginConfig> {
        Ok(PluginConfig {
            driver: enumeration::<pb::Plugin, _>(self.driver, "driver")?,
            config: map(self.config, "config")?,
        })
    }
}

/// As deep as the schemas are: no deeper than protobuf's own limit.
impl ToPb<pb::ConfigValue> for ConfigValue {
    fn to_pb(&self) -> pb::ConfigValue {
        use pb::config_value::Kind;
        let kind = match self {
            ConfigValue::Bool(value) => Kind::Flag(*value),
            ConfigValue::Integer(value) => Kind::Integer(*value),
            ConfigValue::Text(text) => Kind::Text(text.clone()),
            ConfigValue::List(items) => Kind::List(pb::ConfigList { items: all(items) }),
            ConfigValue::Map(fields) => Kind::Map(pb::ConfigMap { fields: all_by_name(fields) }),
        };
        pb::ConfigValue { kind: Some(kind) }
    }
}

impl ToModel<ConfigValue> for pb::ConfigValue {
    fn to_model(self) -> Result<ConfigValue> {
        use pb::config_value::Kind;
        Ok(match present(self.kind, "kind")? {
            Kind::Flag(value) => ConfigValue::Bool(value),
            Kind::Integer(value) => ConfigValue::Integer(value),
            Kind::Text(text) => ConfigValue::Text(text),
            Kind::List(inner) => ConfigValue::List(list(inner.items, "items")?),
            Kind::Map(inner) => ConfigValue::Map(map(inner.fields, "fields")?),
        })
    }
}

enum_pairs!(Plugin, pb::Plugin, Docker, Podman, Java);
