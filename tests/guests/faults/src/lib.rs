//! A function that does what its input names: for the tests of everything that can go wrong.
//! The first word is the command, the others its arguments; see `handle`.

use fulmar::{Counter, Error, List};

static ITEMS: List<String> = List::new("items");
static COUNT: Counter = Counter::new("count");

#[fulmar::function]
fn handle(input: String) -> Result<String, Error> {
    let mut words = input.split(' ');
    let command = words.next().unwrap_or_default();
    let arguments: Vec<&str> = words.collect();
    let argument = |at: usize| {
        arguments
            .get(at)
            .copied()
            .ok_or_else(|| Error::rejected(format!("{command}: argument {at} is missing")))
    };
    let number = |at: usize| -> Result<u64, Error> { Ok(argument(at)?.parse()?) };
    let state = fulmar::session();
    match command {
        "echo" => Ok(arguments.join(" ")),
        "trap" => panic!("told to panic"),
        "loop" => loop {
            std::hint::spin_loop();
        },
        "memory" => {
            let mut held = Vec::new();
            loop {
                held.push(vec![1_u8; 1 << 20]);
            }
        }
        "stack" => Ok(deeper(1).to_string()),
        "sleep" => {
            std::thread::sleep(std::time::Duration::from_millis(number(0)?));
            Ok("slept".into())
        }
        "spin" => {
            let until = fulmar::now_unix_ms() + number(0)?;
            while fulmar::now_unix_ms() < until {}
            Ok("spun".into())
        }
        "reply" => Ok("x".repeat(number(0)? as usize)),
        "reject" => Err(Error::rejected(arguments.join(" "))),
        "fail" => Err(Error::failed(arguments.join(" "))),
        "get" => Ok(state.get(argument(0)?)?.map_or("absent".into(), |value| {
            String::from_utf8_lossy(&value).into_owned()
        })),
        "set" => state
            .set(argument(0)?, argument(1)?.as_bytes())
            .map(|()| "set".into()),
        "set-then-fail" => {
            state.set(argument(0)?, argument(1)?.as_bytes())?;
            Err(Error::failed("told to fail after writing"))
        }
        "set-then-trap" => {
            state.set(argument(0)?, argument(1)?.as_bytes())?;
            panic!("told to panic after writing")
        }
        "set-then-spin" => {
            state.set(argument(0)?, argument(1)?.as_bytes())?;
            loop {
                std::hint::spin_loop();
            }
        }
        "count" => Ok(COUNT.add(argument(0)?.parse()?)?.to_string()),
        "count-and-choose" => {
            fulmar::choose_model(match argument(0)? {
                "in-function" => fulmar::ExecutionModel::InFunction,
                "in-edge" => fulmar::ExecutionModel::InEdge,
                "external" => fulmar::ExecutionModel::External,
                _ => fulmar::ExecutionModel::Auto,
            })?;
            if argument(1).is_ok() {
                return Err(Error::failed("told to fail after choosing"));
            }
            Ok(COUNT.add(1)?.to_string())
        }
        "counted" => Ok(COUNT.get()?.to_string()),
        "count-then-fail" => {
            COUNT.add(argument(0)?.parse()?)?;
            Err(Error::failed("told to fail after counting"))
        }
        "sleep-and-count" => {
            std::thread::sleep(std::time::Duration::from_millis(number(0)?));
            Ok(COUNT.add(1)?.to_string())
        }
        "record" => Ok(ITEMS.push(arguments.join(" "))?.to_string()),
        "record-padded" => Ok(ITEMS.push("x".repeat(number(0)? as usize))?.to_string()),
        "items" => Ok(ITEMS.iter().collect::<Result<Vec<_>, _>>()?.join(",")),
        "len" => Ok(ITEMS.len()?.to_string()),
        "shared-increment" => Ok(fulmar::bucket(argument(0)?)
            .increment(argument(1)?, argument(2)?.parse()?)?
            .to_string()),
        "shared-increment-slowly" => {
            let bucket = fulmar::bucket(argument(0)?);
            let sum = bucket.increment(argument(1)?, argument(2)?.parse()?)?;
            std::thread::sleep(std::time::Duration::from_millis(number(3)?));
            Ok(sum.to_string())
        }
        // shared-swap BUCKET KEY EXPECTED VALUE; `-` is absent.
        "shared-swap" => {
            let present = |at| Ok::<_, Error>(Some(argument(at)?).filter(|text| *text != "-"));
            let (expected, value) = (present(2)?, present(3)?);
            let swapped = fulmar::bucket(argument(0)?).compare_and_swap(
                argument(1)?,
                expected.map(str::as_bytes),
                value.map(str::as_bytes),
            )?;
            Ok(swapped.to_string())
        }
        "shared-get" => {
            let value = fulmar::bucket(argument(0)?).get(argument(1)?)?;
            Ok(value.map_or("absent".into(), |value| {
                String::from_utf8_lossy(&value).into_owned()
            }))
        }
        "shared-get-all" => {
            let bucket = fulmar::bucket(argument(0)?);
            let values = arguments[1..].iter().map(|key| bucket.get(key));
            let values: Vec<_> = values.collect::<Result<_, _>>()?;
            Ok(values
                .iter()
                .flatten()
                .map(Vec::len)
                .sum::<usize>()
                .to_string())
        }
        // get-all-and-sleep MS BUCKET KEYS
        "get-all-and-sleep" => {
            let bucket = fulmar::bucket(argument(1)?);
            for key in &arguments[2..] {
                bucket.get(key)?;
            }
            std::thread::sleep(std::time::Duration::from_millis(number(0)?));
            Ok("done".into())
        }
        "shared-set-padded" => {
            let value = vec![b'x'; number(2)? as usize];
            fulmar::bucket(argument(0)?).set(argument(1)?, &value)?;
            Ok("set".into())
        }
        "shared-delete" => {
            fulmar::bucket(argument(0)?).delete(argument(1)?)?;
            Ok("deleted".into())
        }
        "shared-keys" => {
            let bucket = fulmar::bucket(argument(0)?);
            let prefix = arguments.get(1).copied().unwrap_or_default();
            Ok(bucket.list_keys(prefix, None, 1000)?.join(","))
        }
        // Counts here, and adds one to two shared keys, in this order: all of it or nothing.
        "shared-increment-both" => {
            let bucket = fulmar::bucket(argument(0)?);
            let sums = [
                bucket.increment(argument(1)?, 1)?,
                bucket.increment(argument(2)?, 1)?,
            ];
            COUNT.add(1)?;
            Ok(format!("{} {}", sums[0], sums[1]))
        }
        "shared-set-pair" => {
            let bucket = fulmar::bucket(argument(0)?);
            bucket.set("left", argument(1)?.as_bytes())?;
            bucket.set("right", argument(1)?.as_bytes())?;
            Ok("set".into())
        }
        "send" => {
            let (function, session, count) = (argument(0)?, argument(1)?, number(2)?);
            let session = (session != "-").then_some(session);
            let body = arguments[3..].join(" ");
            for n in 0..count {
                fulmar::send(
                    function,
                    session,
                    body.replace("{n}", &n.to_string()).as_bytes(),
                )?;
            }
            Ok(count.to_string())
        }
        // Counts, and tells another session what the count is: both or neither.
        "count-and-tell" => count_and_tell("faults", argument(0)?, argument(1)?),
        // The same for a session of any function.
        "count-and-tell-to" => count_and_tell(argument(0)?, argument(1)?, argument(2)?),
        // Counts, and lets another session count one: both or neither.
        "count-and-pass" => {
            let count = COUNT.add(1)?;
            fulmar::send(argument(0)?, Some(argument(1)?), b"count 1")?;
            Ok(count.to_string())
        }
        // The same with a shared key that counts as well.
        "count-share-and-pass" => {
            let count = COUNT.add(1)?;
            fulmar::bucket(argument(2)?).increment(argument(3)?, 1)?;
            fulmar::send(argument(0)?, Some(argument(1)?), b"count 1")?;
            Ok(count.to_string())
        }
        "context" => {
            let context = fulmar::context();
            Ok(serde_json::json!({
                "id": context.id(),
                "function": context.function(),
                "session": context.session(),
                "idempotency_key": context.idempotency_key(),
                "attempt": context.attempt(),
                "read_only": context.is_read_only(),
            })
            .to_string())
        }
        "attempt" => match fulmar::context().attempt() {
            attempt if u64::from(attempt) < number(0)? => {
                Err(Error::failed(format!("attempt {attempt} is too early")))
            }
            attempt => Ok(ITEMS.push(format!("attempt {attempt}"))?.to_string()),
        },
        "log" => {
            fulmar::info!("{}", arguments.join(" "));
            println!("standard output: {}", arguments.join(" "));
            Ok("logged".into())
        }
        "env" => Ok(std::env::vars()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join(",")),
        "config" => Ok(fulmar::config(argument(0)?).unwrap_or("absent".into())),
        "files" => Ok(match std::fs::read_dir(argument(0)?) {
            Ok(entries) => format!("sees {} entries", entries.count()),
            Err(error) => format!("refused: {error}"),
        }),
        "connect" => Ok(match std::net::TcpStream::connect(argument(0)?) {
            Ok(_) => "connected".into(),
            Err(error) => format!("refused: {error}"),
        }),
        other => Err(Error::rejected(format!("unknown command {other:?}"))),
    }
}

fn count_and_tell(function: &str, session: &str, text: &str) -> Result<String, Error> {
    let count = COUNT.add(1)?;
    let body = format!("record {text}:{count}");
    fulmar::send(function, Some(session), body.as_bytes())?;
    Ok(count.to_string())
}

/// Recursion that the compiler cannot turn into a loop.
fn deeper(depth: u64) -> u64 {
    let padding = std::hint::black_box([depth; 64]);
    if depth == u64::MAX {
        0
    } else {
        deeper(depth + 1) + std::hint::black_box(padding[(depth % 64) as usize])
    }
}
