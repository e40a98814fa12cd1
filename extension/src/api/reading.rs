//! SQL functions that read rows: the columns of each kind of row are spelled once.

use pgrx::datum::TimestampWithTimeZone;

/// A moment in PostgreSQL's microseconds as a value of SQL.
pub fn moment(moment: i64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(moment).ok()
}

/// Makes functions that return rows with the same columns.
///
/// `columns` gives names and types. The functions after `look_up` return at most one row: their body, which may name
/// the schema, gives it. The others are SQL: `select` gives the statement up to the names of the tables, with
/// `{schema}` for the extension's. Each function has the rest of its statement, the types of its parameters, and
/// a body that checks the arguments and gives them as the parameters.
macro_rules! reading {
    (
        columns $columns:tt
        $(look_up
            $(#[$one_attribute:meta])*
            fn $one:ident $one_arguments:tt in $schema:ident $one_body:block
        )?
        select $select:literal
        $(
            $(#[$attribute:meta])*
            fn $function:ident $arguments:tt $rest:literal, [$($parameter:ident),*] $body:block
        )+
    ) => {
        $(reading! {
            @look_up $columns
            $(#[$one_attribute])*
            $one $one_arguments $schema $one_body
        })?
        $(reading! {
            @function $columns
            $(#[$attribute])*
            $function $arguments concat!($select, " ", $rest), [$($parameter),*], $body
        })+
    };
    (
        @look_up { $($column:ident: [$($type:tt)+],)+ }
        $(#[$attribute:meta])*
        $function:ident ($($argument:tt)*) $schema:ident $body:block
    ) => {
        $(#[$attribute])*
        #[pg_extern(stable, parallel_safe, security_definer)]
        #[search_path(pg_catalog, pg_temp)]
        #[allow(clippy::type_complexity)]
        fn $function(
            $($argument)*
            fcinfo: pg_sys::FunctionCallInfo,
        ) -> TableIterator<'static, ($(name!($column, $($type)+),)+)> {
            let $schema = Schema::of_call(fcinfo);
            TableIterator::new($body)
        }
    };
    (
        @function { $($column:ident: [$($type:tt)+],)+ }
        $(#[$attribute:meta])*
        $function:ident ($($argument:tt)*) $sql:expr, [$($parameter:ident),*], $body:block
    ) => {
        $(#[$attribute])*
        #[pg_extern(stable, parallel_safe, security_definer)]
        #[search_path(pg_catalog, pg_temp)]
        #[allow(clippy::type_complexity)]
        fn $function(
            $($argument)*
            fcinfo: pg_sys::FunctionCallInfo,
        ) -> spi::Result<TableIterator<'static, ($(name!($column, $($type)+),)+)>> {
            thread_local!(static PLAN: Plan = const {
                Plan::new($sql, &[$(PgBuiltInOids::$parameter),*])
            });
            let arguments = $body;
            let rows = Plan::rows(&PLAN, Schema::of_call(fcinfo), &arguments, |row| {
                let mut ordinal = 0;
                Ok(($({
                    ordinal += 1;
                    reading!(@column row, ordinal, $($type)+)
                },)+))
            })?;
            Ok(TableIterator::new(rows))
        }
    };
    (@column $row:ident, $ordinal:ident, Option<$type:ty>) => { $row.get($ordinal)? };
    (@column $row:ident, $ordinal:ident, $type:ty) => { column($row, $ordinal)? };
}

pub(crate) use reading;
