//! Documents of runs in which a mistake is made on purpose.

use midflight_sim::scenario::Scenario;
use midflight_sim::world::Options;

/// Make the mistake that the document names, from here on.
#[cfg(feature = "bugs")]
pub fn make(scenario: &Scenario, options: Options) -> Result<Options, String> {
    use midflight_sim::catalogue::ENTRIES;
    let Some(name) = &scenario.mistake else { return Ok(options) };
    let entry = ENTRIES.iter().find(|entry| entry.name() == name);
    let entry = entry.ok_or_else(|| format!("no mistake is called {name}"))?;
    midflight::bugs::set(entry.bug());
    Ok(Options { slip: entry.options().slip, ..options })
}

/// Mistakes are not in this program.
#[cfg(not(feature = "bugs"))]
pub fn make(scenario: &Scenario, options: Options) -> Result<Options, String> {
    match &scenario.mistake {
        None => Ok(options),
        Some(name) => Err(format!(
            "the document wants the mistake {name}, which only a build with the feature bugs can make"
        )),
    }
}
