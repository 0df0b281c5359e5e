"""Jobs and scripts written for SageMaker: its API's job files, and the folder and variables of its container."""
