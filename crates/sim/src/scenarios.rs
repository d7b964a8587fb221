//! The built-in scenarios, one folder or file each.
