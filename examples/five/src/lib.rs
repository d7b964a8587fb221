//! Five reads and five writes of the session's state in one invocation, none of them cached: what a
//! benchmark compares with five commands to a store elsewhere.

use fulmar::Error;

#[fulmar::function]
fn handle(delta: String) -> Result<String, Error> {
    let delta: i64 = delta
        .trim()
        .parse()
        .map_err(|_| Error::rejected("the body is not a whole number"))?;
    let state = fulmar::session();
    let mut sum = 0;
    for key in ["a", "b", "c", "d", "e"] {
        let before: i64 = match state.get(key)? {
            Some(text) => String::from_utf8(text)?.parse()?,
            None => 0,
        };
        state.set(key, (before + delta).to_string().as_bytes())?;
        sum += before + delta;
    }
    Ok(sum.to_string())
}
