//! A durable counter per session: the body is what to add, the answer is the sum.

use fulmar::{Counter, Error};

static COUNT: Counter = Counter::new("count");

#[fulmar::function]
fn handle(delta: String) -> Result<String, Error> {
    let delta = match delta.trim() {
        "" => 1,
        text => text
            .parse()
            .map_err(|_| Error::rejected(format!("{text:?} is not a whole number")))?,
    };
    Ok(COUNT.add(delta)?.to_string())
}
