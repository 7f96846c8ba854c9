"""What encoders and rankers compute with: their names, modules, backends and towers."""
