//! Errors that keep all their fields on the way through Rust.
//!
//! pgrx carries an error of PostgreSQL through Rust as a panic and raises it again at the end of the SQL
//! function, with its message, detail and hint, and with its SQLSTATE if PostgreSQL has a name for it. A
//! trigger's own SQLSTATE, the names of constraint and table, and the context would be lost. A [`Context`]
//! is therefore an error context callback of PostgreSQL: it keeps a copy of the error when it is raised
//! first, and restores the lost fields when it is raised again.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use pgrx::pg_sys::{self, ErrorData};
use pgrx::{PgLogLevel, PgSqlErrorCode, ereport};

/// Adds the operation and its coupon to errors and log messages while it lives, and keeps all fields of
/// errors from below.
pub struct Context(*mut Frame);

/// A [`Context`] as PostgreSQL calls it.
///
/// It lies in PostgreSQL's memory, not on the stack: when an error is raised again, the stack is already
/// unwound. PostgreSQL then takes it off its list, and frees it with the memory of the call.
struct Frame {
    callback: pg_sys::ErrorContextCallback,
    memory: pg_sys::MemoryContext,
    doing: Option<(&'static CStr, *const c_char, c_int)>,
    /// The error that was raised last, or that is raised next.
    kept: *mut ErrorData,
}

impl Context {
    /// `doing` names the operation, as in "while claiming".
    pub fn new(doing: &'static CStr, coupon_name: &str) -> Context {
        Context::push(Some((doing, coupon_name)))
    }

    fn push(doing: Option<(&'static CStr, &str)>) -> Context {
        let length = doing.map_or(0, |(_, name)| name.len());
        // SAFETY: what `palloc` returns has room for a frame and the name behind it, which must outlive the
        // caller's. PostgreSQL calls each callback of this list with its argument; `drop` takes it off again, or
        // the error handler does.
        unsafe {
            let frame = pg_sys::palloc(size_of::<Frame>() + length).cast::<Frame>();
            let doing = doing.map(|(doing, name)| {
                let copy = frame.add(1).cast::<c_char>();
                copy.copy_from_nonoverlapping(name.as_ptr().cast(), length);
                (doing, copy.cast_const(), length as c_int)
            });
            frame.write(Frame {
                callback: pg_sys::ErrorContextCallback {
                    previous: pg_sys::error_context_stack,
                    callback: Some(complete),
                    arg: frame.cast(),
                },
                memory: pg_sys::CurrentMemoryContext,
                doing,
                kept: ptr::null_mut(),
            });
            pg_sys::error_context_stack = &raw mut (*frame).callback;
            Context(frame)
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: pushed by `push`; all that was pushed later has been taken off earlier.
            unsafe {
                pg_sys::error_context_stack = (*self.0).callback.previous;
                if !(*self.0).kept.is_null() {
                    pg_sys::FreeErrorData((*self.0).kept);
                }
                pg_sys::pfree(self.0.cast());
            }
        }
    }
}

/// Raises an error with any SQLSTATE, also one that PostgreSQL does not know, and with the names of the
/// constraint that it is about, if any.
pub fn raise(
    sqlstate: &[u8; 5],
    message: String,
    detail: &str,
    constraint: Option<Constraint<'_>>,
) -> ! {
    let context = Context::push(None);
    // SAFETY: the frame was just made. The copies are of the context that the frame is in.
    unsafe {
        let error = pg_sys::palloc0(size_of::<ErrorData>()).cast::<ErrorData>();
        (*error).elevel = PgLogLevel::ERROR as c_int;
        (*error).sqlerrcode = encode(sqlstate);
        (*error).message = copy(&message);
        if let Some(constraint) = constraint {
            (*error).schema_name = pg_sys::pstrdup(constraint.schema.as_ptr());
            (*error).table_name = pg_sys::pstrdup(constraint.table.as_ptr());
            (*error).constraint_name = pg_sys::pstrdup(constraint.name.as_ptr());
        }
        (*context.0).kept = error;
    }
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_RAISE_EXCEPTION,
        message,
        detail.to_owned()
    );
}

/// Refuses a change that a trigger has made to a claim.
///
/// # Errors
/// `09000`, with `message`.
pub fn refuse_triggers_change(message: &'static str) -> ! {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_TRIGGERED_ACTION_EXCEPTION,
        message
    );
}

/// Refuses to change a row that another session has deleted, past the queue.
///
/// # Errors
/// `40001`.
pub fn refuse_concurrent_delete(row: &str) -> ! {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        format!("could not serialize access: the {row} was deleted meanwhile")
    );
}

/// Refuses an operation that needs the relation called `name`, which the extension's SQL lacks.
///
/// # Errors
/// `55000`, with the statement that adds it as a hint.
pub fn refuse_missing(name: &str) -> ! {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("the honcho extension of this database has no table {name}"),
        "Run \"alter extension honcho update\"."
    );
}

/// The constraint that an error is about.
pub struct Constraint<'a> {
    /// The schema of the table.
    pub schema: &'a CStr,
    /// The table.
    pub table: &'a CStr,
    /// Its name.
    pub name: &'a CStr,
}

/// A SQLSTATE as PostgreSQL keeps it: six bits a character.
fn encode(sqlstate: &[u8; 5]) -> c_int {
    sqlstate.iter().rev().fold(0, |code, &character| {
        code << 6 | c_int::from(character - b'0') & 0x3f
    })
}

/// A copy of `text` in the current memory context.
fn copy(text: &str) -> *mut c_char {
    // SAFETY: `pnstrdup` copies that many bytes and adds a zero.
    unsafe { pg_sys::pnstrdup(text.as_ptr().cast(), text.len()) }
}

/// Functions that a callback calls without pgrx's guards, which must not run while an error is raised.
mod raw {
    use std::ffi::{c_char, c_int};

    use pgrx::pg_sys::ErrorData;

    unsafe extern "C" {
        pub fn CopyErrorData() -> *mut ErrorData;
        pub fn FreeErrorData(error: *mut ErrorData);
        pub fn errcode(sqlstate: c_int) -> c_int;
        pub fn err_generic_string(field: c_int, text: *const c_char) -> c_int;
        pub fn errdetail_log(format: *const c_char, ...) -> c_int;
        pub fn errcontext_msg(format: *const c_char, ...) -> c_int;
        pub fn internalerrquery(query: *const c_char) -> c_int;
        pub fn internalerrposition(position: c_int) -> c_int;
    }
}

/// Called by PostgreSQL for each error and message while the frame is on its list, from the innermost frame
/// to the outermost.
///
/// # Safety
/// `frame` is a [`Frame`] on the list. Nothing here panics or raises an error, except if memory runs out, for
/// which PostgreSQL is prepared here.
unsafe extern "C-unwind" fn complete(frame: *mut c_void) {
    // SAFETY: as above; PostgreSQL is raising an error, to which the calls add.
    unsafe {
        let frame = &mut *frame.cast::<Frame>();
        let error_memory = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = frame.memory;
        let error = raw::CopyErrorData();
        pg_sys::CurrentMemoryContext = error_memory;
        if (*error).elevel < PgLogLevel::ERROR as c_int {
            raw::FreeErrorData(error);
        } else if is_again(error, frame.kept) {
            restore(&*frame.kept);
            raw::FreeErrorData(error);
        } else {
            if !frame.kept.is_null() {
                raw::FreeErrorData(frame.kept);
            }
            frame.kept = error;
        }
        if let Some((doing, name, length)) = frame.doing {
            raw::errcontext_msg(c"%s coupon \"%.*s\"".as_ptr(), doing.as_ptr(), length, name);
        }
    }
}

/// Returns true if pgrx raises `kept` again as `error`: it has the same message and no context yet.
///
/// # Safety
/// `error` is valid, `kept` valid or null.
unsafe fn is_again(error: *const ErrorData, kept: *const ErrorData) -> bool {
    // SAFETY: as above; texts are C strings or null.
    unsafe {
        !kept.is_null()
            && (*error).context.is_null()
            && !(*error).message.is_null()
            && !(*kept).message.is_null()
            && CStr::from_ptr((*error).message) == CStr::from_ptr((*kept).message)
    }
}

/// Gives the current error the fields of `kept` that pgrx does not carry.
///
/// # Safety
/// PostgreSQL is raising an error.
unsafe fn restore(kept: &ErrorData) {
    let names = [
        (pg_sys::PG_DIAG_SCHEMA_NAME, kept.schema_name),
        (pg_sys::PG_DIAG_TABLE_NAME, kept.table_name),
        (pg_sys::PG_DIAG_COLUMN_NAME, kept.column_name),
        (pg_sys::PG_DIAG_DATATYPE_NAME, kept.datatype_name),
        (pg_sys::PG_DIAG_CONSTRAINT_NAME, kept.constraint_name),
    ];
    // SAFETY: as above; each call copies its text.
    unsafe {
        raw::errcode(kept.sqlerrcode);
        for (field, name) in names {
            if !name.is_null() {
                raw::err_generic_string(field as c_int, name);
            }
        }
        if !kept.detail_log.is_null() {
            raw::errdetail_log(c"%s".as_ptr(), kept.detail_log);
        }
        if !kept.internalquery.is_null() {
            raw::internalerrquery(kept.internalquery);
            raw::internalerrposition(kept.internalpos);
        }
        if !kept.context.is_null() {
            raw::errcontext_msg(c"%s".as_ptr(), kept.context);
        }
    }
}
