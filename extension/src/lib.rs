//! The honcho extension.
pgrx::pg_module_magic!();
