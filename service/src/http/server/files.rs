//! The limit of open files: every connection needs one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

use super::BEYOND;

/// Files that the process needs besides those of clients' and database connections: libraries, logs.
const OTHER_FILES: usize = 256;

/// Raises the limit of open files to one for each connection, of which event streams are a part, as far as the system allows: most systems start programs
/// with a limit of a thousand, which they may raise.
pub fn raise_file_limit(connections: usize, database_connections: usize) {
    let wanted = (connections + BEYOND + database_connections + OTHER_FILES) as u64;
    let limit = getrlimit(Resource::Nofile);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|files| files >= wanted);
    if is_enough(limit.current) {
        return;
    }
    let raised = Rlimit {
        current: limit
            .maximum
            .map_or(Some(wanted), |most| Some(most.min(wanted))),
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!("cannot raise the limit of open files: {error}");
    }
    let limit = getrlimit(Resource::Nofile).current;
    if is_enough(limit) {
        return;
    }
    let files = limit.unwrap_or_default();
    let enough_for = files.saturating_sub(wanted - connections as u64);
    if files < connections as u64 || enough_for == 0 {
        let or_set = match enough_for {
            0 => String::new(),
            _ => format!(", or set CONNECTION_LIMIT to {enough_for}"),
        };
        warn!(
            "the system lets this process open {files} files, too few for CONNECTION_LIMIT={connections}: \
             raise the limit (ulimit -n, LimitNOFILE=){or_set}"
        );
    } else {
        info!(
            "the system lets this process open {files} files, enough for {enough_for} connections"
        );
    }
}
