"""Names of RULER's sub-tasks in figures and in the narrow columns of tables."""

from retrobench.tasks.ruler.spec import TASKS

DISPLAY = {task: task.removeprefix("niah_").replace("_", " ") for task in TASKS}
SHORT = {
    "niah_single_1": "s1",
    "niah_single_2": "s2",
    "niah_single_3": "s3",
    "niah_multikey_1": "mk1",
    "niah_multikey_2": "mk2",
    "niah_multikey_3": "mk3",
    "niah_multivalue": "mv",
    "niah_multiquery": "mq",
}
