//! Any bytes as a record of the local data store: they are refused, or what was read is stored and
//! read back the same.

#![no_main]

use fulmar_state::record::{
    FunctionRecord, IdempotencyRecord, InvocationRecord, MessageRecord, NodeRecord, Record, SessionRecord,
};
use libfuzzer_sys::fuzz_target;

fn check<R: Record + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(record) = R::decode(bytes) {
        assert_eq!(R::decode(&record.encode()).as_ref(), Ok(&record));
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<FunctionRecord>(bytes);
    check::<IdempotencyRecord>(bytes);
    check::<InvocationRecord>(bytes);
    check::<MessageRecord>(bytes);
    check::<NodeRecord>(bytes);
    check::<SessionRecord>(bytes);
});
