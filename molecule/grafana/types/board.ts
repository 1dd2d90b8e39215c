// What a dashboard of this repository may consist of, in the words of Grafana's own types: stricter than Grafana, which
// takes any options for a panel. @grafana/schema here is a copy whose enumerations of words are unions of those words
// (tests/grafana_types.py), since JSON has words and no enumerations.
import type {
  AnnotationQuery, Dashboard as AnyDashboard, DataSourceRef, FieldColor, FieldConfig, Panel as AnyPanel, TableCellOptions,
  ThresholdsConfig, ValueMapping, VariableModel,
} from '@grafana/schema';
import type * as barchart from './types/raw/composable/barchart/panelcfg/x/types.gen';
import type * as geomap from './types/raw/composable/geomap/panelcfg/x/types.gen';
import type * as stat from './types/raw/composable/stat/panelcfg/x/types.gen';
import type * as table from './types/raw/composable/table/panelcfg/x/types.gen';
import type * as timeseries from './types/raw/composable/timeseries/panelcfg/x/types.gen';

type Source = DataSourceRef & { type: 'grafana-postgresql-datasource'; uid: 'dmarc-pg' };

// The data source's own query has no published type; these are the fields that its back end reads.
interface Query {
  refId: string;
  datasource: Source;
  editorMode: 'code' | 'builder';
  format: 'table' | 'time_series';
  rawQuery: boolean;
  rawSql: string;
}

type Property =
  | { id: 'unit'; value: string }
  | { id: 'decimals'; value: number }
  | { id: 'color'; value: FieldColor }
  | { id: 'thresholds'; value: ThresholdsConfig }
  | { id: 'mappings'; value: ValueMapping[] }
  | { id: 'links'; value: Array<{ title: string; url: string }> }
  | { id: 'custom.cellOptions'; value: TableCellOptions }
  | { id: 'custom.width' | 'custom.minWidth'; value: number };

interface Fields<Custom> {
  defaults: Omit<FieldConfig, 'custom'> & { custom?: Custom };
  overrides: Array<{ matcher: { id: 'byName'; options: string }; properties: Property[] }>;
}

type Panel<Type extends string, Options, Custom> =
  Required<Pick<AnyPanel, 'id' | 'title' | 'description' | 'gridPos'>> & {
    type: Type;
    interval?: string;
    datasource: Source;
    targets: Query[];
    options: Options;
    fieldConfig: Fields<Custom>;
  };

export type Dashboard =
  Required<Pick<AnyDashboard, 'uid' | 'title' | 'description' | 'tags' | 'time' | 'timezone' | 'schemaVersion'>>
  & Omit<AnyDashboard, 'panels' | 'annotations' | 'templating'> & {
    panels: Array<
      | Panel<'barchart', barchart.Options, barchart.FieldConfig>
      | Panel<'geomap', geomap.Options, never>
      | Panel<'stat', stat.Options, never>
      | Panel<'table', table.Options, table.FieldConfig>
      | Panel<'timeseries', timeseries.Options, timeseries.FieldConfig>
    >;
    annotations: { list: Array<Omit<AnnotationQuery, 'target'> & { target: Query }> };
    // Grafana writes the definition of a query variable, but its types lack it.
    templating: { list: Array<Omit<VariableModel, 'query'> & { definition?: string; query: string | Query }> };
  };
