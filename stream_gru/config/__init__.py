"""The configuration: a TOML file in, a checked `Config` out, or every mistake with its file and line."""

from stream_gru.config.catalog import Catalog
from stream_gru.config.connector import SinkContext, SinkTable, SourceContext, SourceTable
from stream_gru.config.load import (
    Purpose,
    check_purpose,
    load_config,
    parse_config,
    require_running,
    require_training,
    resolve_paths,
)
from stream_gru.config.model_schema import ClassesConfig, ForecastConfig, LayerConfig, ModelConfig, RegularizerConfig
from stream_gru.config.printing import effective, sample_config
from stream_gru.config.run_schema import (
    DeadLetterConfig,
    LimitsConfig,
    MetricsConfig,
    RunConfig,
)
from stream_gru.config.train_schema import (
    ChannelConfig,
    ConditioningConfig,
    Config,
    DataConfig,
    InputConfig,
    SplitConfig,
    TrainingConfig,
)

__all__ = [
    "Catalog",
    "ChannelConfig",
    "ClassesConfig",
    "ConditioningConfig",
    "Config",
    "DataConfig",
    "DeadLetterConfig",
    "ForecastConfig",
    "InputConfig",
    "LayerConfig",
    "LimitsConfig",
    "MetricsConfig",
    "ModelConfig",
    "Purpose",
    "RegularizerConfig",
    "RunConfig",
    "SinkContext",
    "SinkTable",
    "SourceContext",
    "SourceTable",
    "SplitConfig",
    "TrainingConfig",
    "check_purpose",
    "effective",
    "load_config",
    "parse_config",
    "require_running",
    "require_training",
    "resolve_paths",
    "sample_config",
]
