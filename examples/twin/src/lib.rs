//! The digital twin of a machine: its sensors as they were read last, and how many readings there were. The body is the
//! name of a sensor and, on the lines after it, what it reads; the answer is the number of readings so far.

use fulmar::{Counter, Error, Map};

static READINGS: Counter = Counter::new("readings");
static SENSORS: Map<String, String> = Map::new("sensors");

#[fulmar::function]
fn handle(report: String) -> Result<String, Error> {
    let (sensor, reading) = report.split_once('\n').unwrap_or((&report, ""));
    SENSORS.insert(sensor, reading.to_owned());
    Ok(READINGS.add(1)?.to_string())
}
