//! Mean response times of M/M/1 and M/M/c queues.

use super::Unstable;

/// Probability that an arrival finds all of `servers` busy and waits (Erlang C), when the offered
/// load is `offered` erlangs. Stable for any number of servers: the recursion of Erlang B neither
/// overflows nor cancels.
///
/// # Errors
/// When `offered >= servers`.
pub fn waiting_probability(servers: u32, offered: f64) -> Result<f64, Unstable> {
    let utilisation = offered / f64::from(servers);
    if utilisation.is_nan() || utilisation >= 1.0 {
        let queue = format!("the pool of {servers} containers");
        return Err(Unstable::new(queue, utilisation));
    }
    let blocking = (1..=servers).fold(1.0, |blocked, servers| {
        let carried = offered * blocked;
        carried / (f64::from(servers) + carried)
    });
    Ok(blocking / (1.0 - utilisation * (1.0 - blocking)))
}

/// Mean response time of an M/M/c queue, in seconds: `rate` arrivals a second, `service_seconds`
/// each, `servers` of them at once.
///
/// # Errors
/// When the queue grows without bound.
pub fn pool_seconds(servers: u32, rate: f64, service_seconds: f64) -> Result<f64, Unstable> {
    let offered = rate * service_seconds;
    if offered == 0.0 {
        return Ok(service_seconds);
    }
    let waits = waiting_probability(servers, offered)?;
    Ok(service_seconds + waits * service_seconds / (f64::from(servers) - offered))
}

/// Mean response time of an M/M/1 queue, in seconds.
///
/// # Errors
/// When the queue grows without bound.
pub fn dedicated_seconds(rate: f64, service_seconds: f64) -> Result<f64, Unstable> {
    let load = rate * service_seconds;
    if load < 1.0 {
        Ok(service_seconds / (1.0 - load))
    } else {
        Err(Unstable::new("the dedicated container", load))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_server_is_m_m_1() {
        for load in [0.0, 0.1, 0.5, 0.99] {
            let pool = pool_seconds(1, load / 2.0, 2.0).unwrap();
            let dedicated = dedicated_seconds(load / 2.0, 2.0).unwrap();
            assert!((pool - dedicated).abs() < 1e-9 * dedicated);
        }
    }

    #[test]
    fn textbook_values_of_erlang_c() {
        // Two servers, one erlang: C = 1/3. Ten servers, eight erlangs: 0.4092.
        assert!((waiting_probability(2, 1.0).unwrap() - 1.0 / 3.0).abs() < 1e-12);
        assert!((waiting_probability(10, 8.0).unwrap() - 0.4092).abs() < 5e-5);
    }

    #[test]
    fn thousands_of_servers_neither_overflow_nor_vanish() {
        let waits = waiting_probability(50_000, 49_900.0).unwrap();
        assert!((0.3..1.0).contains(&waits), "{waits}");
    }

    #[test]
    fn an_unstable_queue_says_by_how_much() {
        let error = pool_seconds(10, 4.0, 3.0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the pool of 10 containers is unstable: its load is 1.2000 of what it can serve, 0.2000 too much"
        );
        assert!(pool_seconds(0, 1.0, 1.0).is_err());
        assert!(waiting_probability(3, f64::NAN).is_err());
        assert!(dedicated_seconds(1.0, 1.0).is_err());
    }

    proptest! {
        #[test]
        fn another_server_never_makes_it_slower(servers in 1_u32..200, load in 0.0..0.999) {
            let rate = load * f64::from(servers);
            let fewer = pool_seconds(servers, rate, 1.0).unwrap();
            let more = pool_seconds(servers + 1, rate, 1.0).unwrap();
            prop_assert!(more <= fewer * (1.0 + 1e-12));
        }
    }
}
