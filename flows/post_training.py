"""The loop: a fold of `iteration` over the committed state of a campaign."""

from prefect import flow, get_run_logger

from flows.config import RunConfig
from flows.iteration import first_state, iteration, publish
from flows.launches import launched, shard_runner
from storage.campaigns import Campaign, State
from tasks._engines import pool


@flow(
    name="post-training",
    flow_run_name="{config.campaign}",
    persist_result=True,
    task_runner=shard_runner(),
)
def post_training(config: RunConfig) -> State:
    """Bring a campaign to `config.iterations`, from wherever it was left.

    Run it again after any failure: what was committed is found, only what is missing is made.
    """
    log = get_run_logger()
    try:
        with launched(config) as launch:
            campaign = Campaign(launch.root, config.campaign)
            state = campaign.last_state() or first_state(config, launch)
            publish(state, launch)
            _warn_of_changes(campaign, config, state)
            for warning in config.warnings():
                log.warning("%s", warning)
            if state.iteration >= launch.target:
                log.info("campaign %s has its %d iterations; nothing to do", config.campaign, state.iteration)
            while state.iteration < launch.target:
                log.info("campaign %s: iteration %d of %d", config.campaign, state.iteration + 1, launch.target)
                iteration(state, config, launch)
                # Not what the flow returned: on a retry Prefect hands out what an earlier call returned.
                state = campaign.last_state() or state
            return state
    finally:
        pool.close_all()


def _warn_of_changes(campaign: Campaign, config: RunConfig, state: State) -> None:
    """A campaign that goes on with another seed, model or start is rarely meant: a campaign of its own is."""
    begun = campaign.launch(state.launch_id).config
    for key, before, now in [
        ("seed", begun["seed"], config.seed),
        ("model.path", begun["model"]["path"], config.model.path),
        ("sft", begun.get("sft"), config.sft.model_dump(mode="json") if config.sft else None),
    ]:
        if before != now:
            get_run_logger().warning(
                "campaign %s: its last iteration was made with %s %r, this run says %r; for a run of its own use "
                "--set campaign=NAME",
                campaign.name,
                key,
                before,
                now,
            )
