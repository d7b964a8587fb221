//! Values of single keys, each checked against its rule in the schema.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;

use toml::de::DeValue;

use super::{Node, Reader, Section, kind, label, shortened, suggestion};
use crate::id::FunctionName;
use crate::manifest::schema::{self, Field, Rule};
use crate::manifest::{OnPartition, limits};
use crate::units::{ByteSize, CpuAmount, Duration};

impl Reader<'_> {
    /// A required text.
    pub(super) fn required<'t>(
        &mut self,
        top: &'t Section<'_, '_>,
        field: &Field,
        example: &str,
    ) -> Option<(&'t Node<'t>, &'t str)> {
        let Some(node) = top.get(field.key) else {
            self.report(
                0..0,
                format!("the key `{}` is missing", field.key),
                format!("allowed is {}", field.rule.allowed()),
                format!(
                    "add a line such as {} = \"{example}\" at the top",
                    field.key
                ),
            );
            return None;
        };
        let DeValue::String(text) = node.get_ref() else {
            self.refuse_type(node, field, "put it in double quotes");
            return None;
        };
        Some((node, text))
    }

    pub(super) fn name(&mut self, top: &Section<'_, '_>) -> Option<FunctionName> {
        let (node, text) = self.required(top, &schema::NAME, "my-function")?;
        let fault = match FunctionName::new(text) {
            Ok(name) if !name.is_shared_keys() => return Some(name),
            Ok(name) => format!("{name} stands for shared keys"),
            Err(error) => error.to_string(),
        };
        self.refuse(node, &schema::NAME, fault, "choose another name");
        None
    }

    pub(super) fn artifact(&mut self, top: &Section<'_, '_>) -> Option<String> {
        let (node, text) = self.required(
            top,
            &schema::ARTIFACT,
            "target/wasm32-wasip2/release/my_function.wasm",
        )?;
        let fault = if text.is_empty() {
            "the path is empty".to_owned()
        } else if text.len() > limits::MAX_PATH_BYTES {
            format!(
                "the path has {} bytes, more than {}",
                text.len(),
                limits::MAX_PATH_BYTES
            )
        } else if text.chars().any(char::is_control) {
            "the path has control characters".to_owned()
        } else {
            return Some(text.to_owned());
        };
        self.refuse(
            node,
            &schema::ARTIFACT,
            fault,
            "name the component that the build makes",
        );
        None
    }

    pub(super) fn command(&mut self, section: &Section<'_, '_>) -> Vec<String> {
        let field = &schema::PROCESS_COMMAND;
        let mut command = Vec::new();
        for (node, text) in self.texts(section, field) {
            if text.is_empty() || text.len() > limits::MAX_PATH_BYTES || text.contains('\0') {
                let found = format!("{} holds {:?}", label(field), shortened(text));
                let allowed = limits::MAX_PATH_BYTES;
                let fix = format!("write 1 to {allowed} bytes without a NUL character");
                self.refuse(node, field, found, fix);
            }
            command.push(text.to_owned());
        }
        command
    }

    pub(super) fn size(&mut self, section: &Section<'_, '_>, field: &Field, into: &mut ByteSize) {
        let Rule::Size { min, max } = field.rule else {
            unreachable!("{} is a size", field.key)
        };
        self.quantity(section, field, min, max, into);
    }

    pub(super) fn time(&mut self, section: &Section<'_, '_>, field: &Field, into: &mut Duration) {
        let Rule::Time { min, max } = field.rule else {
            unreachable!("{} is a duration", field.key)
        };
        self.quantity(section, field, min, max, into);
    }

    pub(super) fn cpu(&mut self, section: &Section<'_, '_>, field: &Field, into: &mut CpuAmount) {
        let Rule::Cpu { max } = field.rule else {
            unreachable!("{} is an amount of CPU", field.key)
        };
        self.quantity(section, field, CpuAmount::default(), max, into);
    }

    pub(super) fn quantity<T>(
        &mut self,
        section: &Section<'_, '_>,
        field: &Field,
        min: T,
        max: T,
        into: &mut T,
    ) where
        T: FromStr<Err: Display> + Display + PartialOrd + Copy,
    {
        let Some(node) = section.get(field.key) else {
            return;
        };
        let DeValue::String(text) = node.get_ref() else {
            return self.refuse_type(node, field, "write a number and a unit in double quotes");
        };
        match text.parse::<T>() {
            Err(error) => self.refuse(node, field, error.to_string(), "correct the value"),
            Ok(value) if value < min => {
                let found = format!("{} is {value}", label(field));
                self.refuse(node, field, found, format!("raise it to at least {min}"));
            }
            Ok(value) if value > max => {
                let found = format!("{} is {value}", label(field));
                self.refuse(node, field, found, format!("lower it to at most {max}"));
            }
            Ok(value) => *into = value,
        }
    }

    pub(super) fn flag(&mut self, section: &Section<'_, '_>, field: &Field, into: &mut bool) {
        let Some(node) = section.get(field.key) else {
            return;
        };
        match node.get_ref() {
            DeValue::Boolean(value) => *into = *value,
            _ => self.refuse_type(node, field, "write true or false without quotes"),
        }
    }

    pub(super) fn count(&mut self, section: &Section<'_, '_>, field: &Field, into: &mut u32) {
        let Rule::Count { min, max } = field.rule else {
            unreachable!("{} is a number", field.key)
        };
        let Some(node) = section.get(field.key) else {
            return;
        };
        let DeValue::Integer(number) = node.get_ref() else {
            return self.refuse_type(node, field, "write a number without quotes");
        };
        match u32::from_str_radix(number.as_str(), number.radix()) {
            Ok(value) if (min..=max).contains(&value) => *into = value,
            _ => {
                let found = format!("{} is {}", label(field), shortened(&number.to_string()));
                self.refuse(node, field, found, "choose a number in that range");
            }
        }
    }

    pub(super) fn choice(
        &mut self,
        section: &Section<'_, '_>,
        field: &Field,
    ) -> Option<&'static str> {
        let Rule::Choice(allowed) = field.rule else {
            unreachable!("{} is a choice", field.key)
        };
        let node = section.get(field.key)?;
        let DeValue::String(text) = node.get_ref() else {
            self.refuse_type(node, field, "put one of these words in double quotes");
            return None;
        };
        if let Some(word) = allowed.iter().find(|word| **word == *text) {
            return Some(word);
        }
        let found = format!("{} is {:?}", label(field), shortened(text));
        self.refuse(node, field, found, suggestion(text, allowed));
        None
    }

    pub(super) fn on_partition(&mut self, top: &Section<'_, '_>, into: &mut OnPartition) {
        let field = &schema::ON_PARTITION;
        let Some(node) = top.get(field.key) else {
            return;
        };
        let DeValue::String(text) = node.get_ref() else {
            return self.refuse_type(node, field, "put it in double quotes");
        };
        match OnPartition::parse(text) {
            Some(policy) => *into = policy,
            None => {
                let found = format!("{} is {:?}", label(field), shortened(text));
                self.refuse(node, field, found, "write it in one of these forms");
            }
        }
    }

    pub(super) fn methods(&mut self, top: &Section<'_, '_>) -> BTreeSet<String> {
        let field = &schema::READ_ONLY_METHODS;
        let mut methods = BTreeSet::new();
        for (node, text) in self.texts(top, field) {
            if schema::METHODS.contains(&text) {
                methods.insert(text.to_owned());
            } else {
                let found = format!("{:?} is not such a method", shortened(text));
                self.refuse(node, field, found, suggestion(text, schema::METHODS));
            }
        }
        methods
    }

    /// The texts of a list; whatever is not a text is reported and left out.
    pub(super) fn texts<'t>(
        &mut self,
        section: &'t Section<'_, '_>,
        field: &Field,
    ) -> Vec<(&'t Node<'t>, &'t str)> {
        let mut texts = Vec::new();
        for node in self.list(section, field) {
            match node.get_ref() {
                DeValue::String(text) => texts.push((node, &**text)),
                other => {
                    let found = format!("{} holds {}", label(field), kind(other));
                    self.refuse(node, field, found, "put each entry in double quotes");
                }
            }
        }
        texts
    }

    pub(super) fn list<'t>(
        &mut self,
        section: &'t Section<'_, '_>,
        field: &Field,
    ) -> &'t [Node<'t>] {
        let Some(node) = section.get(field.key) else {
            return &[];
        };
        let DeValue::Array(list) = node.get_ref() else {
            self.refuse_type(node, field, "put it in square brackets");
            return &[];
        };
        if list.len() > limits::MAX_ENTRIES {
            let found = format!("{} has {} entries", label(field), list.len());
            self.refuse(
                node,
                field,
                found,
                format!("keep at most {}", limits::MAX_ENTRIES),
            );
            return &[];
        }
        list
    }
}
