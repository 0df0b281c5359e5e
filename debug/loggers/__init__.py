"""Loggers: where a ``Watch`` sends numbers and findings while training goes on."""

from .logger import LoggedStep as LoggedStep
from .logger import Logger as Logger
from .mlflow import MLflowLogger as MLflowLogger
from .tensorboard import TensorBoardLogger as TensorBoardLogger
from .wandb import WandbLogger as WandbLogger
